"""Shards through Ray Data: read as Arrow blocks, through a pool of actors, published one by one.

A block holds whole shards: Ray is told not to split blocks, and every row carries its shard, so blocks that Ray merges
fall apart again in the actor. The actor publishes a shard's rows, then its completion marker; only the report travels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import ray.data as ray_data

from raydeploy.attempts import AttemptNotes
from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.shard_actor import ROWS_COLUMN, SHARD_COLUMN, ShardActor, ShardReport, Suffix
from xmatch.data import files
from xmatch.data.steps import Reader, Shard, Step
from xmatch.errors import InputError

READERS_PER_ACTOR = 2
SHARDS_IN_ACTOR = 2
"""One is worked on while the one before is published."""
OFFLINE = {"env_vars": {"HF_HUB_OFFLINE": "1"}}
"""Of workers: what they need of the hub, the driver has fetched (staging.py)."""


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


class ShardWork(NamedTuple):
    """What an actor does with each shard: the step, and where its output goes in which format."""

    step: Step
    output: str
    suffix: Suffix


def run_shards(
    shards: Sequence[Shard],
    reader: Reader,
    step: Step,
    ledger: Ledger,
    *,
    suffix: Suffix,
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
    AttemptNotes(ledger.output).clear()
    files.write_json(files.join(ledger.output, "run", "shards.json"), {"shards": len(shards), "left": len(remaining)})
    if not remaining:
        return
    reports = reports_of(remaining, reader, ShardWork(step, ledger.output, suffix), ray)
    try:
        for row in reports.iter_rows():
            yield ShardReport(**json.loads(row["report"]))
    except Exception as error:
        ours = find_input_error(error)
        if ours is None:
            raise
        raise InputError(str(ours)) from error


def reports_of(shards: Sequence[Shard], reader: Reader, work: ShardWork, ray: RayConfig) -> ray_data.Dataset:
    """The plan of a run, not begun: shards read in tasks, worked on in actors; a row for each report."""
    context = ray_data.DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else the cause of a failure does not reach the driver
    rows = ray_data.from_items([shard._asdict() for shard in shards], override_num_blocks=len(shards))
    blocks = rows.map_batches(
        ReadShards(reader),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray_data.TaskPoolStrategy(size=min(READERS_PER_ACTOR * ray.actors, len(shards))),
        num_cpus=0,  # reading waits more than it computes, and must start even where actors hold every core
    )
    return blocks.map_batches_internal(  # map_batches itself refuses whole blocks for workers with GPUs
        ShardActor,
        fn_constructor_args=(*work, ray.faults),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray_data.ActorPoolStrategy(
            size=min(ray.actors, len(shards)),
            max_tasks_in_flight_per_actor=SHARDS_IN_ACTOR,
            enable_true_multi_threading=True,
        ),
        max_concurrency=SHARDS_IN_ACTOR,
        num_cpus=ray.cpus_per_actor,
        num_gpus=ray.gpus_per_actor or None,
        runtime_env=OFFLINE,
    )


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
