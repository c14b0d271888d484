"""W workers with b rows each compute what one worker computes with W x b rows, over real gloo processes."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from gloo_workers import Case, Done, run_workers, step, steps

from xmatch.training.gather import gather_rows
from xmatch.training.objectives import OBJECTIVES, LossConfig
from xmatch.training.step import StepConfig

SIZES = {"full": (24, 12), "indivisible": (24, 7), "last_of_epoch": (5, 12), "fewer_than_workers": (2, 12)}
GLOBAL = {
    f"{loss}-{size}-{dropout}": Case(LossConfig(name=loss), *SIZES[size], dropout=dropout)
    for loss, size, dropout in product(OBJECTIVES, SIZES, (0.0, 0.4))
}
GLOBAL |= {f"{loss}-cached": Case(LossConfig(name=loss), 24, 12, 0.4, StepConfig(cached_rows=2)) for loss in OBJECTIVES}
GLOBAL |= {
    f"{loss}-negative-sum": Case(LossConfig(name=loss, same_image="negative", reduction="sum"), 24, 12)
    for loss in ("sentence_paired_hinge", "batchwise_hinge", "hardest_triplet")
}
LOCAL = {
    f"{loss}-{size}": Case(LossConfig(name=loss, negatives="local"), *SIZES[size])
    for loss, size in product(OBJECTIVES, SIZES)
}
ALL = [*GLOBAL.values(), *LOCAL.values()]


@cache
def results(world: int) -> list[tuple[list[Done], dict[str, torch.Tensor]]]:
    """All cases, by worker; the processes start once for all tests."""
    with TemporaryDirectory() as folder:
        return run_workers(world, steps, ALL, Path(folder))


def done_by(world: int) -> list[list[Done]]:
    return [done for done, _ in results(world)]


def assert_same_gradients(one: Done, other: Done, case: Case) -> None:
    learnt = OBJECTIVES[case.loss.name].learns
    for name, gradient in one.gradients.items():
        if name.startswith("logit_") and name not in learnt:
            assert gradient is None and other.gradients[name] is None
            continue
        torch.testing.assert_close(gradient, other.gradients[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", GLOBAL)
def test_workers_together_have_the_loss_and_gradients_of_one(name: str, world: int) -> None:
    case = GLOBAL[name]
    alone, place = step(case._replace(step=StepConfig())), list(GLOBAL).index(name)
    assert any(g is not None and g.abs().max() > 1e-4 for g in alone.gradients.values()) or case.num_samples < 5
    for worker in done_by(world):
        assert math.isclose(worker[place].loss, alone.loss, abs_tol=1e-6, rel_tol=1e-6)
        assert_same_gradients(worker[place], alone, case)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", LOCAL)
def test_local_negatives_average_the_workers_own_losses(name: str, world: int) -> None:
    case, place = LOCAL[name], len(GLOBAL) + list(LOCAL).index(name)
    workers = [worker[place] for worker in done_by(world)]
    own = [step(case, rank, world) for rank in range(world)]  # without a process group: each sees its rows alone
    for rank in range(world):
        assert math.isclose(workers[rank].loss, own[rank].loss, abs_tol=1e-6)
        for key, gradient in workers[rank].gradients.items():
            parts = [done.gradients[key] for done in own]
            known = [torch.zeros(()) if part is None else part for part in parts]
            if all(part is None for part in parts):
                assert gradient is None
            else:
                torch.testing.assert_close(gradient, sum(known) / world, atol=2e-6, rtol=1e-5)


def test_local_negatives_are_not_global_ones() -> None:
    for loss in ("info_nce", "hardest_triplet", "batchwise_hinge", "sigmoid"):
        place = len(GLOBAL) + list(LOCAL).index(f"{loss}-full")
        assert abs(done_by(2)[0][place].loss - step(GLOBAL[f"{loss}-full-0.0"]).loss) > 1e-3


def test_rows_come_in_the_order_of_one_worker() -> None:
    for _, worker in results(2):
        assert worker["floats"][:, 0].tolist() == [0, 1, 10, 11, 20, 21]
        assert worker["integers"].dtype == torch.int64
        assert worker["bools"][:, 0].tolist() == [False, False, True, True, True, True]


def test_without_a_group_rows_stay() -> None:
    rows = torch.ones(2, 3)
    assert gather_rows(rows) is rows
