"""Predictions over shards: a task's samples to what its head chooses."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from alignment.mvptr import checkpoints
from alignment.mvptr.heads import TaskModel
from alignment.mvptr.pair_inputs import PairInputs, TagConfig
from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.tasks.predicting import task_scores
from alignment.mvptr.tasks.samples import read_samples
from xmatch.data import files
from xmatch.data.steps import StepOutput, no_quarantine

SCHEMA = pa.schema(
    [("row", pa.int64()), ("choice", pa.int64()), ("score", pa.float32()), ("regions", pa.list_(pa.float32()))]
)
"""One row a sample. choice: answer, class or region with the greatest score; score: that; regions: scores of all of the
model's places for regions, null for other tasks."""


class TaskPlace(NamedTuple):
    """What a worker needs: all plain, so that it travels.

    model: a saved MVPTR of a task. samples: file of them. regions: places of regions. tags: what becomes of the object
    tags. threads: of torch.
    """

    model: str
    samples: str
    regions: tuple[str, ...]
    tags: TagConfig = TagConfig()
    threads: int = 1

    def inputs(self) -> tuple[TaskModel, PairInputs]:
        """Model and samples."""
        saved = checkpoints.load(self.model)
        config = saved.model.config
        table = read_samples(files.local_copy(self.samples))
        banks = RegionBanks(self.regions, config.region_width)
        inputs = PairInputs(table, banks, saved.tokenizer, config.lengths, self.tags, self.samples)
        return saved.model, inputs


class PredictTask:
    """A step: numbers of samples (column `row`) to rows of SCHEMA."""

    def __init__(self, place: TaskPlace) -> None:
        self.place = place
        self.seconds: dict[str, float] = {}
        self._opened: tuple[TaskModel, PairInputs] | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Predictions of one shard, in row order."""
        if self._opened is None:
            torch.set_num_threads(self.place.threads)
            model, inputs = self.place.inputs()
            self._opened = model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), inputs
        model, inputs = self._opened
        numbers, started = rows.column("row").to_numpy(), time.perf_counter()
        scores = task_scores(model, inputs, numbers)
        self.seconds["predict"] = self.seconds.get("predict", 0.0) + time.perf_counter() - started
        choices = scores.argmax(1)
        lists = scores.tolist() if model.head.task == "refexp" else [None] * len(scores)
        columns = [
            pa.array(numbers),
            pa.array(choices.astype(np.int64)),
            pa.array(scores[np.arange(len(scores)), choices]),
            pa.array(lists, pa.list_(pa.float32())),
        ]
        return StepOutput(pa.table(columns, schema=SCHEMA), {"samples": len(scores)}, no_quarantine())
