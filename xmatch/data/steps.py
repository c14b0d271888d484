"""The shape of a step of work: what a shard is, what goes in, what comes out.

A *reader* is a picklable callable `(Shard) -> pa.Table`: one Arrow table, all rows of the shard. A *step* is a small
picklable object `(shard_id, rows) -> StepOutput` that loads what it needs on its first call. Neither knows where it
runs: the same step called in a plain loop gives the tables that a cluster gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

QUARANTINE_SCHEMA = pa.schema([("item", pa.string()), ("where", pa.string()), ("reason", pa.string())])
"""One row an item that was left out: its id, the file or row it came from, and why."""


class Shard(NamedTuple):
    """One unit of work and of resume. What `start` and `stop` count belongs to the reader that made it."""

    id: str
    source: str
    start: int
    stop: int


class StepOutput(NamedTuple):
    """What a step makes of one shard: its rows, deterministic counts for the manifest, and what it left out."""

    table: pa.Table
    counts: dict[str, int]
    quarantine: pa.Table


class Reader(Protocol):
    """Reads one shard as one Arrow table."""

    def __call__(self, shard: Shard) -> pa.Table:
        """All rows of the shard."""
        ...


class Step(Protocol):
    """Turns the rows of one shard into its output."""

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """The output of the shard with these rows."""
        ...


def quarantine_table(rows: Sequence[tuple[str, str, str]] = ()) -> pa.Table:
    """Quarantined items as a table of (item, where, reason)."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table([pa.array(list(c), pa.string()) for c in columns], schema=QUARANTINE_SCHEMA)


def no_quarantine() -> pa.Table:
    """The empty quarantine of a step that left nothing out."""
    return quarantine_table()


def shard_name(index: int) -> str:
    """The id of the shard at `index`: names sort like numbers up to 99,999 shards and stay unique beyond."""
    return f"part-{index:05d}"
