"""Training workers: killed ones, several of them, and diverging losses."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from toy_recipe import ToyRecipe

from raydeploy.training import TrainerConfig, fit
from xmatch.errors import InputError
from xmatch.training.optim import OptimConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OPTIM = OptimConfig(lr=0.02, schedule="linear", warmup_share=0.1)


def run(folder: Path, *, workers: int = 1, every: int = 0, **recipe) -> list[tuple[float, float]]:
    config = TrainerConfig(epochs=3, batch_size=4, workers=workers, checkpoint_every_steps=every)
    result = fit(partial(ToyRecipe, **recipe), config, OPTIM, str(folder))
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    return [(row["loss"], row["rsum"]) for row in result.history]


@pytest.mark.parametrize("every", [0, 2])
def test_a_killed_worker_changes_nothing_but_the_time(ray_here, tmp_path: Path, every: int) -> None:
    whole = run(tmp_path / "whole")
    assert whole[2][1] > whole[0][1]
    flag = str(tmp_path / "flag")
    assert run(tmp_path / "killed", every=every, flag=flag, die_in=1) == whole
    assert Path(flag).exists()


def test_two_workers_see_every_sample_once_an_epoch(ray_here, tmp_path: Path) -> None:
    run(tmp_path / "two", workers=2, seen=str(tmp_path / "seen"))
    lines = [line for path in tmp_path.glob("seen-*") for line in path.read_text().splitlines()]
    assert len(list(tmp_path.glob("seen-*"))) == 2
    assert Counter(lines) == Counter(f"{epoch} {i}" for epoch in range(3) for i in range(23))


def test_a_diverging_loss_is_named(ray_here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="loss became nan at step 6"):
        run(tmp_path, nan_from=1)


def test_a_figure_that_is_not_there_is_named(ray_here, tmp_path: Path) -> None:
    config = TrainerConfig(epochs=1, batch_size=4, select_by="recall")
    with pytest.raises(InputError, match="select_by is 'recall'.*rsum"):
        fit(ToyRecipe, config, OPTIM, str(tmp_path))
