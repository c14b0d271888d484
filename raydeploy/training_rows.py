"""What plan and report of a training run say for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydeploy.training import TrainerConfig, TrainResult
from xmatch.data.captions import CaptionSet


def size_of(captions: CaptionSet) -> str:
    """How many captions and images a split has."""
    return f"{len(captions.captions):,} captions of {len(captions.image_ids):,} images"


def bad_rows(name: str, captions: CaptionSet) -> list[tuple[str, str]]:
    """A row for what was left out of a split; none where nothing was."""
    if not captions.bad_rows:
        return []
    return [(f"{name}, bad rows", f"{captions.bad_rows:,} left out; the first: {captions.first_bad[0]}")]


def workers_of(trainer: TrainerConfig) -> str:
    """How many workers train, and how."""
    fewest = f"{trainer.min_workers} to " if trainer.min_workers else ""
    where = "" if trainer.placement == "pack" else f", {trainer.placement}"
    return f"{fewest}{trainer.workers} x {trainer.cpus_per_worker} CPU, {trainer.precision}{where}"


def best_of(result: TrainResult) -> dict[str, Any]:
    """The figures of the best epoch."""
    return next(row for row in result.history if row["epoch"] == result.best_epoch)


def result_rows(folder: str, result: TrainResult, best: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the model lies, and what it reached."""
    rows = [("model", folder), ("best epoch", str(result.best_epoch)), ("captions/s", f"{result.samples_per_s:,.0f}")]
    rows += [(name, f"{value:.2f}") for name, value in best.items() if isinstance(value, float) and "_at_" in name]
    return [*rows, ("rsum", f"{best['rsum']:.1f}")]
