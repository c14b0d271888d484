"""A few steps of a recipe, thrown away: how fast a run will be, and how large."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from xmatch.data.epoch_order import epoch_indices
from xmatch.training.optim import OptimConfig, build_optimizer
from xmatch.training.recipe import Recipe, SampleKey
from xmatch.training.step import StepConfig, Stepper


class Trial(NamedTuple):
    """What the steps showed.

    Attributes:
        samples: of them, without the first step.
        seconds: of them.
        load_seconds: until model and data were ready and the first step was done.
        weights: of the model, and those of them that learn.
    """

    samples: int
    seconds: float
    load_seconds: float
    weights: tuple[int, int]


def try_steps(
    recipe: Callable[[], Recipe],
    config: StepConfig,
    optim: OptimConfig,
    *,
    batch_size: int,
    threads: int,
    seconds: float,
    most: int = 1 << 60,
) -> Trial:
    """Train for some seconds on one worker's batches, in this process.

    Args:
        recipe: makes what is to be trained; a part of the data will do.
        config: how a step is computed.
        optim: optimizer.
        batch_size: of one worker; smaller where the recipe has fewer samples.
        threads: of torch.
        seconds: to spend at most, beyond the first step and one more.
        most: samples to train on at most, in whole steps.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.perf_counter()
        made = recipe()
        model = made.build_model()
        optimizer = build_optimizer(made.parameter_groups(model), optim)
        stepper = Stepper(made, model, config)
        size = min(batch_size, made.num_samples)
        order = epoch_indices(made.num_samples, seed=0, epoch=0, worker_rank=0, world_size=1, batch_size=size)
        _step(made, stepper, optimizer, order[0])
        started, samples, step = time.perf_counter(), 0, 1
        while not samples or (samples < most and time.perf_counter() - started < seconds):
            samples += _step(made, stepper, optimizer, order[step % len(order)])
            step += 1
        parameters = list(model.parameters())
        weights = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        return Trial(samples, time.perf_counter() - started, started - began, weights)
    finally:
        torch.set_num_threads(before)


def _step(recipe: Recipe, stepper: Stepper, optimizer: torch.optim.Optimizer, indices: np.ndarray) -> int:
    """One step over the samples at `indices`, of shape (B,), those below 0 apart; how many they were."""
    real = indices[indices >= 0]
    batch = {name: rows.to(stepper.device) for name, rows in recipe.batch(real, SampleKey(0, 0)).items()}
    optimizer.zero_grad(set_to_none=True)
    valid, samples = torch.ones(len(real), dtype=torch.bool), torch.from_numpy(real)
    stepper.backward(batch, valid.to(stepper.device), samples=samples.to(stepper.device), epoch=0, seed=0)
    nn.utils.clip_grad_norm_([p for p in stepper.model.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    return len(real)
