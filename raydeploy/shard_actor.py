"""The worker of a streamed run: holds a step, runs it on whole shards, publishes what it makes.

A shard is published in this order, each step atomic: its rows, its quarantine if there is one, its completion marker.
The marker is created only where none is; whoever comes second finds it and compares. Rows that take their worker down
again and again are found and left out (attempts.py); a worker that hangs is ended (watchdog.py).
"""

from __future__ import annotations

import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydeploy.attempts import Attempt, AttemptNotes, after_probe
from raydeploy.faults import FaultConfig
from raydeploy.ledger import Marker, mark_done, marker_path, read_marker
from raydeploy.watchdog import Watchdog
from xmatch.data import files
from xmatch.data.steps import Step, StepOutput, quarantine_table
from xmatch.data.vectors import write_vectors
from xmatch.errors import InputError

SHARD_COLUMN = "_shard"
ROWS_COLUMN = "_shard_rows"
WRITERS = {"parquet": files.write_parquet, "arrow": write_vectors}
Suffix = Literal["parquet", "arrow"]
LEFT_OUT = "its worker died or hung with this row alone, found by halving the shard"


class ShardReport(NamedTuple):
    """What the driver hears of a finished shard.

    Attributes:
        shard_id: its name.
        counts: deterministic figures, as in the manifest.
        seconds: of each stage; none for a shard that was done already.
        memory_bytes: the worker's largest resident set so far.
        tallies: counts of the step that may differ from run to run, such as the candidates of a search.
        notes: what the step says of how it works, such as the search backend it took.
        quarantined: items left out or repaired.
    """

    shard_id: str
    counts: dict[str, int]
    seconds: dict[str, float]
    memory_bytes: int = 0
    tallies: dict[str, int] = {}
    notes: dict[str, str] = {}
    quarantined: int = 0


class ShardActor:
    """Runs a step on each whole shard of a block.

    Args:
        step: what is run.
        output: folder or URI prefix of the run.
        suffix: format of the shards' files.
        faults: when a worker counts as hung; None: it is not watched, and its shards are not tried again.
    """

    def __init__(self, step: Step, output: str, suffix: Suffix, faults: FaultConfig | None = None) -> None:
        self.step, self.output, self.suffix = step, output, suffix
        self.notes = AttemptNotes(output) if faults else None
        self.watchdog = Watchdog(faults.stuck_after_s, faults.frozen_after_s) if faults else None
        self._steps = ThreadPoolExecutor(1, "step")

    def __call__(self, block: pa.Table) -> pa.Table:
        """A row for each shard of the block, with its report."""
        if not isinstance(block, pa.Table):
            raise TypeError(f"expected an Arrow block, got {type(block).__name__}")
        reports = []
        for shard_id in dict.fromkeys(block.column(SHARD_COLUMN).to_pylist()):
            rows = block.filter(pc.equal(block.column(SHARD_COLUMN), shard_id))
            expected = rows.column(ROWS_COLUMN)[0].as_py()
            if len(rows) != expected:
                raise InputError(
                    f"shard {shard_id} arrived in pieces ({len(rows)} of {expected} rows); make shards smaller."
                )
            reports.append(self.run_shard(shard_id, rows.drop_columns([SHARD_COLUMN, ROWS_COLUMN])))
        return pa.table({"report": pa.array([json.dumps(report._asdict()) for report in reports])})

    def run_shard(self, shard_id: str, rows: pa.Table) -> ShardReport:
        """Run the step on one shard and publish what it makes; a shard that is done already is left alone.

        Several threads may call this: the step runs in one thread of its own, one shard after the other, while what
        was made before is published.
        """
        if files.exists(marker_path(self.output, shard_id)):
            marker = read_marker(self.output, shard_id)
            return ShardReport(shard_id, marker.counts, {}, quarantined=marker.quarantined)
        made, report = self._steps.submit(self._make, shard_id, rows).result()
        started = time.perf_counter()
        self._publish(shard_id, len(rows), made)
        return report._replace(seconds={**report.seconds, "publish": time.perf_counter() - started})

    def _make(self, shard_id: str, rows: pa.Table) -> tuple[StepOutput, ShardReport]:
        """What the step makes of one shard, and the report of it before it is published."""
        before, counted = dict(getattr(self.step, "seconds", {})), dict(getattr(self.step, "tallies", {}))
        left_out = self._harmful(shard_id, rows)
        table, counts, quarantine = self._run(shard_id, _without(self.step, rows, left_out))
        quarantine = pa.concat_tables([quarantine, _left_out_rows(shard_id, rows, left_out)])
        seconds = {name: value - before.get(name, 0.0) for name, value in getattr(self.step, "seconds", {}).items()}
        tallies = {name: value - counted.get(name, 0) for name, value in getattr(self.step, "tallies", {}).items()}
        notes = dict(getattr(self.step, "notes", {}))
        report = ShardReport(shard_id, counts, seconds, peak_memory(), tallies, notes, len(quarantine))
        return StepOutput(table, counts, quarantine), report

    def _harmful(self, shard_id: str, rows: pa.Table) -> tuple[int, ...]:
        """Positions of rows that take their worker down, as far as is known; looks for more where the notes say so."""
        if self.notes is None:
            return ()
        attempt: Attempt = self.notes.begin(shard_id, len(rows))
        while attempt.probe is not None:
            start, stop = attempt.probe
            positions = [at for at in range(start, stop) if at not in attempt.left_out]
            self._run(shard_id, rows.take(pa.array(positions, pa.int64())))
            attempt = self.notes.write(shard_id, after_probe(attempt))
        return attempt.left_out

    def _run(self, shard_id: str, rows: pa.Table) -> StepOutput:
        try:
            if self.watchdog is None:
                return self.step(shard_id, rows)
            with self.watchdog.limited():
                return self.step(shard_id, rows)
        except InputError as error:
            raise InputError(f"shard {shard_id}: {error}") from error

    def _publish(self, shard_id: str, items: int, made: StepOutput) -> None:
        name = f"shards/{shard_id}.{self.suffix}"
        path = files.join(self.output, name)
        WRITERS[self.suffix](path, made.table)
        if len(made.quarantine):
            files.write_parquet(files.join(self.output, "quarantine", f"{shard_id}.parquet"), made.quarantine)
        size, digest = files.size_and_sha256(path)
        marker = Marker(made.counts, len(made.table), items, len(made.quarantine), name, size, digest)
        mark_done(self.output, shard_id, marker)


def _without(step: Step, rows: pa.Table, positions: tuple[int, ...]) -> pa.Table:
    """Rows without some of them; a step whose output must have a row for each says how (`leave_out`)."""
    if not positions:
        return rows
    leave_out = getattr(step, "leave_out", None)
    if leave_out is not None:
        blanked: pa.Table = leave_out(rows, list(positions))
        return blanked
    kept = np.ones(len(rows), bool)
    kept[list(positions)] = False
    return rows.filter(pa.array(kept))


def _left_out_rows(shard_id: str, rows: pa.Table, positions: tuple[int, ...]) -> pa.Table:
    name = next((column for column in ("id", "line_id") if column in rows.column_names), None)
    items = [str(rows[name][at].as_py()) if name else str(at) for at in positions]
    where = [f"{shard_id}, row {at}" for at in positions]
    return quarantine_table([(item, place, LEFT_OUT) for item, place in zip(items, where, strict=True)])


def peak_memory() -> int:
    """Bytes of the largest resident set this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
