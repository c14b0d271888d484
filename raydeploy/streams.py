"""Shards through Ray Data: read as Arrow blocks, through a pool of actors, published one by one.

A block holds whole shards: Ray is told not to split blocks, and every row carries its shard, so blocks that Ray merges
fall apart again in the actor. The actor publishes a shard's rows, then its completion marker; only the report travels.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray.data as ray_data

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from xmatch.data import files
from xmatch.data.steps import Reader, Shard, Step
from xmatch.data.vectors import write_vectors
from xmatch.errors import InputError

SHARD_COLUMN = "_shard"
ROWS_COLUMN = "_shard_rows"
READERS_PER_ACTOR = 2
MAX_DEATHS = 3
"""Times a shard may take its worker down before the run gives up on it."""
WRITERS = {"parquet": files.write_parquet, "arrow": write_vectors}


class ShardReport(NamedTuple):
    """What the driver hears of a finished shard.

    Attributes:
        shard_id: its name.
        counts: deterministic figures, as in the manifest.
        seconds: of each stage; none for a shard that was done already.
        memory_bytes: the worker's largest resident set so far.
        tallies: counts of the step that may differ from run to run, such as the candidates of a search.
        notes: what the step says of how it works, such as the search backend it took.
    """

    shard_id: str
    counts: dict[str, int]
    seconds: dict[str, float]
    memory_bytes: int = 0
    tallies: dict[str, int] = {}
    notes: dict[str, str] = {}


class ReadShards:
    """Reads each shard of a batch of shard rows as one Arrow table that carries the shard's id in every row."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """One table per shard.

        Raises:
            InputError: a shard has no rows, or cannot be read.
        """
        for row in rows.to_pylist():
            shard = Shard(**row)
            table = self.reader(shard)
            if not len(table):
                raise InputError(f"shard {shard.id} of {shard.source!r} has no rows; remove the empty file.")
            counts = pa.array([len(table)] * len(table), pa.int64())
            table = table.append_column(SHARD_COLUMN, pa.array([shard.id] * len(table), pa.string()))
            yield table.append_column(ROWS_COLUMN, counts)


class ShardActor:
    """Holds a step; runs it on each whole shard of a block, publishes the rows, then marks the shard done."""

    def __init__(self, step: Step, output: str, suffix: Literal["parquet", "arrow"]) -> None:
        self.step, self.output, self.suffix = step, output, suffix

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
        """Run the step on one shard and publish what it makes; a shard that is done already is left alone."""
        marker = files.join(self.output, "completions", f"{shard_id}.json")
        if files.exists(marker):
            return ShardReport(shard_id, files.read_json(marker)["counts"], {})
        _count_attempt(self.output, shard_id)
        before, counted = dict(getattr(self.step, "seconds", {})), dict(getattr(self.step, "tallies", {}))
        try:
            table, counts, quarantine = self.step(shard_id, rows)
        except InputError as error:
            raise InputError(f"shard {shard_id}: {error}") from error
        started = time.perf_counter()
        self._publish(shard_id, table, counts, quarantine, marker)
        after = {**getattr(self.step, "seconds", {}), "publish": time.perf_counter() - started}
        seconds = {name: value - before.get(name, 0.0) for name, value in after.items()}
        tallies = {name: value - counted.get(name, 0) for name, value in getattr(self.step, "tallies", {}).items()}
        return ShardReport(shard_id, counts, seconds, peak_memory(), tallies, dict(getattr(self.step, "notes", {})))

    def _publish(
        self, shard_id: str, table: pa.Table, counts: dict[str, int], quarantine: pa.Table, marker: str
    ) -> None:
        path = files.join(self.output, "shards", f"{shard_id}.{self.suffix}")
        WRITERS[self.suffix](path, table)
        if len(quarantine):
            files.write_parquet(files.join(self.output, "quarantine", f"{shard_id}.parquet"), quarantine)
        record = {"counts": counts, "rows": len(table), "sha256": files.sha256(path), "quarantined": len(quarantine)}
        files.write_json(marker, record)


def peak_memory() -> int:
    """Bytes of the largest resident set this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count_attempt(output: str, shard_id: str) -> None:
    """Note that a shard is begun; give up on one that keeps taking its worker down.

    Raises:
        InputError: it was begun too often in this run.
    """
    if files.is_uri(output):
        return
    folder = os.path.join(output, "run", "attempts")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, shard_id)
    with open(path, "ab") as sink:
        sink.write(b".")
    if os.path.getsize(path) > MAX_DEATHS:
        raise InputError(
            f"shard {shard_id} took its worker down {MAX_DEATHS} times (killed, or out of memory). Lower the batch "
            "size, give the actor more memory, or look at that shard's rows."
        )


def run_shards(
    shards: Sequence[Shard],
    reader: Reader,
    step: Step,
    ledger: Ledger,
    *,
    suffix: Literal["parquet", "arrow"],
    ray: RayConfig,
) -> Iterator[ShardReport]:
    """Run a step over the shards that are not done yet, and tell of each as it finishes.

    Args:
        shards: all shards of the run; ids name the outputs.
        reader: makes a shard's Arrow table, in a worker.
        step: makes a shard's output, in an actor that keeps it (and so its model) for its life.
        ledger: of the output folder; decides what is done.
        suffix: format of the output files.
        ray: how many actors, and what each gets.

    Yields:
        A report per newly finished shard, in no certain order; the output does not depend on it.

    Raises:
        InputError: a reader or step raised one; names the shard.
    """
    done = ledger.done()
    remaining = [shard for shard in shards if shard.id not in done]
    shutil.rmtree(os.path.join(ledger.output, "run", "attempts"), ignore_errors=True)
    if not remaining:
        return
    context = ray_data.DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else the cause of a failure does not reach the driver
    rows = ray_data.from_items([shard._asdict() for shard in remaining], override_num_blocks=len(remaining))
    blocks = rows.map_batches(
        ReadShards(reader),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray_data.TaskPoolStrategy(size=min(READERS_PER_ACTOR * ray.actors, len(remaining))),
        num_cpus=0,  # reading waits more than it computes, and must start even where actors hold every core
    )
    reports = blocks.map_batches(
        ShardActor,
        fn_constructor_args=(step, ledger.output, suffix),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray_data.ActorPoolStrategy(size=min(ray.actors, len(remaining)), max_tasks_in_flight_per_actor=2),
        num_cpus=ray.cpus_per_actor,
        num_gpus=ray.gpus_per_actor or None,
    )
    try:
        for row in reports.iter_rows():
            yield ShardReport(**json.loads(row["report"]))
    except Exception as error:
        ours = find_input_error(error)
        if ours is None:
            raise
        raise InputError(str(ours)) from error


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError among the causes of an error that Ray brought home, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)  # of a RayTaskError, which also claims to be what caused it
        if isinstance(error, InputError) and not isinstance(inner, BaseException):
            return InputError(str(error).split("\n")[0])  # Ray may add lines of its own below our paragraph
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None
