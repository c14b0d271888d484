"""Steps of a recipe in one process, or in several that talk through gloo."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pair_recipe import PairRecipe

from xmatch.data.epoch_order import epoch_indices
from xmatch.training.gather import gather_rows
from xmatch.training.objectives import LossConfig
from xmatch.training.recipe import SampleKey
from xmatch.training.step import StepConfig, Stepper


class Case(NamedTuple):
    """One step: of which loss, of how many samples, and how it is computed."""

    loss: LossConfig
    num_samples: int
    batch_size: int
    dropout: float = 0.0
    step: StepConfig = StepConfig()


class Done(NamedTuple):
    """The loss a worker saw, and the gradients in its parameters."""

    loss: float
    gradients: dict[str, torch.Tensor | None]


def step(case: Case, rank: int = 0, world: int = 1) -> Done:
    """The first step of an epoch, as worker `rank` of `world` computes it."""
    recipe = PairRecipe(case.loss, dropout=case.dropout)
    model = recipe.build_model()
    indices = epoch_indices(
        case.num_samples, seed=3, epoch=0, worker_rank=rank, world_size=world, batch_size=case.batch_size
    )[0]
    real = indices[indices >= 0]
    samples = np.resize(real if len(real) else [0], len(indices)).astype(np.int64)
    outcome = Stepper(recipe, model, case.step).backward(
        recipe.batch(samples, SampleKey(3, 0)),
        torch.from_numpy(np.arange(len(indices)) < len(real)),
        samples=torch.from_numpy(samples),
        epoch=0,
        seed=11,
    )
    return Done(float(outcome.loss), {name: p.grad for name, p in model.named_parameters()})


def run_workers(world: int, function: Callable[..., Any], argument: Any, folder: Path) -> list[Any]:
    """What `function(argument, rank, world)` returns in each of `world` processes."""
    mp.spawn(_worker, (world, function, argument, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _worker(rank: int, world: int, function: Callable[..., Any], argument: Any, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", world_size=world, rank=rank)
    torch.save(function(argument, rank, world), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def steps(cases: Sequence[Case], rank: int, world: int) -> tuple[list[Done], dict[str, torch.Tensor]]:
    """`step` of every case, one after the other, and what `gather_rows` makes of rows that say whose they are."""
    rows = torch.tensor([[10.0 * place + rank] for place in range(3)])
    return [step(case, rank, world) for case in cases], {
        "floats": gather_rows(rows),
        "integers": gather_rows(rows.long()),
        "bools": gather_rows(rows > 9),
    }
