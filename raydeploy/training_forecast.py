"""How long a training run will take, from features of a few images and a few steps; and what it took."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raydeploy.forecast import PROCESS_BYTES, STARTUP_S, Fact, Forecast, Sample, duration
from raydeploy.training import TrainerConfig
from xmatch.training.trial import Trial

ADAM_BYTES = 16
"""Of a weight that learns: itself, its gradient and two moments, in float32."""


def training_forecast(
    trial: Trial, images: Sample | None, image_count: int, samples: int, trainer: TrainerConfig, unit: str
) -> Forecast:
    """Scale a trial to a run; validation and the collectives of several workers are not in it.

    Args:
        trial: steps of one worker.
        images: features made on the way; None where the run makes none.
        image_count: of the run.
        samples: of all epochs.
        trainer: how many workers share the steps.
        unit: what a sample is called, in the plural.
    """
    stages = {"training": samples * trial.seconds / max(1, trial.samples) / trainer.workers}
    basis = f"{trial.samples:,} {unit} in {duration(trial.seconds)}"
    if images is not None:
        stages["features"] = images.seconds * image_count / images.units
        basis += f" and features of {images.units:,} images in {duration(images.seconds)}"
    total, learning = trial.weights
    memory = PROCESS_BYTES + 4 * (total - learning) + ADAM_BYTES * learning
    seconds = sum(stages.values()) + trial.load_seconds + 2 * STARTUP_S
    return Forecast(unit, samples, seconds, stages, memory, f"{basis} on this machine, without validation")


def training_fact(history: Sequence[Mapping[str, Any]], before: Collection[int], feature_seconds: float) -> Fact:
    """What a run took.

    Args:
        history: figures of all epochs.
        before: epochs that an earlier run had done.
        feature_seconds: spent on features; 0: none were made.
    """
    fact = Fact()
    for row in history:
        if row["epoch"] not in before:
            fact.units += row["samples"]
            fact.add_stage("training", row["seconds"])
    if feature_seconds:
        fact.add_stage("features", feature_seconds)
    return fact
