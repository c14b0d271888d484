"""Ranked lists of candidates: found by exact search, kept as a predictions table.

Shapes: Q queries, C candidates, K results of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.vectors import Rows
from xmatch.errors import InputError
from xmatch.search import build_searcher

Way = Literal["t2i", "i2t"]
WAYS: tuple[Way, Way] = ("t2i", "i2t")
"""Text to image and image to text."""
REVERSE: dict[Way, Way] = {"t2i": "i2t", "i2t": "t2i"}
EMPTY = -1
"""Row of a place that holds no candidate; such places come last."""
SHOWN = 3
"""Ids named in a message."""

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
"""One row a query: its candidates, best first, and the score that each has of the search or of the entities; null where
only the order is known. Bidirectional re-ranking moves candidates with their scores, which then no longer descend."""
ENTITY_COLUMNS = ("similarities", "first_scores")
"""Of lists ordered by entities, two columns more, list<float32>: the plain score and that of the first step."""

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class Lists(NamedTuple):
    """Ranked lists of all queries, as rows of the candidates.

    Attributes:
        rows: (Q, K) int64, best first; EMPTY in the last places of a shorter list.
        scores: (Q, K) float32, not defined in empty places; NaN where only the order is known.
    """

    rows: Int64
    scores: Float32

    def first(self, k: int) -> Lists:
        """The k best of every query."""
        return Lists(self.rows[:, :k], self.scores[:, :k])

    def ordered(self, order: Int64) -> Lists:
        """Every list in the order of places (Q, K')."""
        return Lists(np.take_along_axis(self.rows, order, 1), np.take_along_axis(self.scores, order, 1))


def search_lists(queries: Rows, items: Rows, k: int, threads: int = 1) -> Lists:
    """The k best items of every query by exact inner product; equal scores by the lowest row.

    Args:
        queries: (Q, D).
        items: (C, D).
        k: at least 1; lists are C long where that is less.
        threads: of the search.
    """
    found = build_searcher(items, threads=threads).search(queries, min(k, max(1, len(items))))
    return Lists(found.ids, found.scores)


def predictions_table(
    lists: Lists, query_ids: Sequence[str], item_ids: Sequence[str], more: Mapping[str, Float32] | None = None
) -> pa.Table:
    """Lists as a predictions table.

    Args:
        lists: (Q, K).
        query_ids: Q ids.
        item_ids: C ids.
        more: further columns of numbers (Q, K), such as those of ENTITY_COLUMNS.
    """
    is_there = lists.rows != EMPTY
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_there.sum(1))]).astype(np.int32))
    names = pa.array(item_ids, pa.string()).take(pa.array(lists.rows[is_there]))
    columns = [pa.array(query_ids, pa.string()), pa.ListArray.from_arrays(offsets, names)]
    is_unknown = (np.isnan(lists.scores) & is_there).any(1)
    scores = pa.ListArray.from_arrays(offsets, pa.array(lists.scores[is_there]), mask=pa.array(is_unknown))
    table = pa.table([*columns, scores], schema=PREDICTION_SCHEMA)
    for name, values in (more or {}).items():
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(values[is_there])))
    return table


def read_predictions(path: str) -> pa.Table:
    """A predictions table.

    Raises:
        InputError: it is not there, or ids are no strings, are null, or repeat; names file and column.
    """
    table = files.read_parquet(path)
    for field in PREDICTION_SCHEMA:
        there = table.schema.field(field.name).type if field.name in table.column_names else "no such column"
        if there != field.type:
            raise InputError(
                f"{path!r}: column {field.name!r} must be {field.type}, got {there}. Ids are strings everywhere: write "
                "them so, or import the file with jobs/convert.py."
            )
    for name in ("query_id", "item_ids"):
        if table.column(name).null_count:
            raise InputError(f"{path!r}: column {name!r} holds {table.column(name).null_count} nulls; expected none.")
    counts = table.column("query_id").value_counts()
    repeated = [row["values"].as_py() for row in counts if row["counts"].as_py() > 1]
    if repeated:
        raise InputError(f"{path!r}: {named(repeated, 'queries')} have more than one list; expected one each.")
    return table


def lists_of(table: pa.Table, query_ids: Sequence[str], item_ids: Sequence[str], where: str) -> Lists:
    """A predictions table as rows of a split, in its order.

    Args:
        table: of PREDICTION_SCHEMA.
        query_ids: Q ids, each of which must have a list; lists of others are left out.
        item_ids: C ids of the candidates.
        where: file, for messages.

    Raises:
        InputError: queries without a list, or candidates that are not in the split; counted and named.
    """
    place = {one: row for row, one in enumerate(table.column("query_id").to_pylist())}
    missing = [one for one in query_ids if one not in place]
    if missing:
        raise InputError(
            f"{where!r}: {named(missing, 'queries')} of {len(query_ids):,} have no list; its own {len(place):,} are "
            f"such as {next(iter(place), 'none')!r}. Give the predictions of this split."
        )
    taken = table.take(pa.array([place[one] for one in query_ids], pa.int64()))
    items, scores = (taken.column(name).combine_chunks() for name in ("item_ids", "scores"))
    row_of = {one: row for row, one in enumerate(item_ids)}
    flat = items.flatten().to_pylist()
    unknown = [one for one in flat if one not in row_of]
    if unknown:
        raise InputError(
            f"{where!r}: {named(list(dict.fromkeys(unknown)), 'candidates')} are not in the split, whose "
            f"{len(item_ids):,} are such as {next(iter(item_ids), 'none')!r}. Give the predictions of this split."
        )
    lengths = np.array([len(one) for one in items], np.int64)
    is_there = np.arange(lengths.max(initial=0)) < lengths[:, None]
    rows = np.full(is_there.shape, EMPTY, np.int64)
    rows[is_there] = [row_of[one] for one in flat]
    found = np.full(is_there.shape, np.nan, np.float32)
    for row, values in enumerate(scores):
        if values.is_valid:
            if len(values) != lengths[row]:
                raise InputError(
                    f"{where!r}: query {query_ids[row]!r} has {lengths[row]} candidates and {len(values)} scores; "
                    "expected one score for each."
                )
            found[row, : len(values)] = values.as_py()
    return Lists(rows, found)


def named(ids: Sequence[str], kind: str) -> str:
    """How many there are, and the first of them, as a message says it."""
    rest = ", …" if len(ids) > SHOWN else ""
    return f"{len(ids):,} {kind} ({', '.join(map(repr, ids[:SHOWN]))}{rest})"
