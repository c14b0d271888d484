"""Training workers: killed ones, several of them, a killed driver, other stores, and diverging losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from toy_recipe import ToyRecipe

from raydeploy.training import TrainerConfig, fit
from xmatch.errors import InputError
from xmatch.training.optim import OptimConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
OPTIM = OptimConfig(lr=0.02, schedule="linear", warmup_share=0.1)


def run(folder: Path, *, workers: int = 1, fewest: int = 0, every: int = 0, **recipe) -> list[tuple[float, float]]:
    config = TrainerConfig(epochs=3, batch_size=4, workers=workers, min_workers=fewest, checkpoint_every_steps=every)
    result = fit(partial(ToyRecipe, **recipe), config, OPTIM, str(folder))
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    return [(row["loss"], row["rsum"]) for row in result.history]


@pytest.fixture(scope="module")
def whole(ray_here, tmp_path_factory) -> tuple[Path, list[tuple[float, float]]]:
    """Folder and curve of an undisturbed run of one worker."""
    folder = tmp_path_factory.mktemp("whole")
    curve = run(folder)
    assert curve[2][1] > curve[0][1]
    assert curve[2][0] < curve[0][0]
    return folder, curve


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "best" / "w.pt", weights_only=True)


@pytest.mark.parametrize("every", [0, 2])
def test_a_killed_worker_changes_nothing_but_the_time(whole, tmp_path: Path, every: int) -> None:
    flag = str(tmp_path / "flag")
    seen = str(tmp_path / "seen")
    assert run(tmp_path / "killed", every=every, flag=flag, die_in=1, seen=seen) == whole[1]
    assert Path(flag).exists()
    for name, value in weights(tmp_path / "killed").items():
        assert torch.equal(value, weights(whole[0])[name])
    assert len(list(tmp_path.glob("seen-*"))) == 2  # the killed worker and its successor
    again = Counter(line for path in tmp_path.glob("seen-*") for line in path.read_text().splitlines())
    # Only what came after the last checkpoint is seen again: three steps of four, or one where each second is kept.
    assert sum(count - 1 for count in again.values()) == (4 if every else 12)


def test_equal_runs_have_equal_bits(whole, tmp_path: Path) -> None:
    assert run(tmp_path) == whole[1]
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, weights(whole[0])[name])


def test_two_workers_have_the_curve_of_one_and_outlive_a_kill(whole, tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    two = run(tmp_path / "two", workers=2)
    for one, other in zip(whole[1], two, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    assert run(tmp_path / "killed", workers=2, every=2, flag=flag, die_in=1) == two
    assert Path(flag).exists()


def test_an_elastic_group_has_the_curve_of_one_worker_and_outlives_a_kill(whole, tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    curve = run(tmp_path / "killed", workers=2, fewest=1, every=2, flag=flag, die_in=1)
    assert Path(flag).exists()
    for one, other in zip(whole[1], curve, strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def driver(output: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A program of its own that trains the toy into `output`, in a process group of its own."""
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "toy_training.py"), output, *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)


def test_a_killed_driver_goes_on_where_it_was(whole, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = driver(str(output), str(tmp_path / "flag"))
    try:
        while not (tmp_path / "flag").exists():  # a worker waits there, in the middle of the second epoch
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 1
    assert driver(str(output)).wait(timeout=500) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]  # the first epoch was not done again
    assert [(row["loss"], row["rsum"]) for row in rows] == whole[1]
    for name, value in weights(output).items():
        assert torch.equal(value, weights(whole[0])[name])


@pytest.mark.s3
def test_a_run_lives_in_an_object_store_and_goes_on_there(whole, tmp_path: Path, s3_environment) -> None:
    """In a program of its own: workers read the store's address from the environment with which Ray started."""
    import boto3

    place = {name: value for name, value in s3_environment.items() if name.startswith("AWS_")}
    client = boto3.client(
        "s3",
        endpoint_url=place["AWS_ENDPOINT_URL"],
        aws_access_key_id=place["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=place["AWS_SECRET_ACCESS_KEY"],
        region_name=place["AWS_DEFAULT_REGION"],
    )
    assert driver("s3://runs/toy", "", "1", **place).wait(timeout=500) == 0
    assert driver("s3://runs/toy", **place).wait(timeout=500) == 0
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="runs", Prefix="toy/")["Contents"]]
    lines = client.get_object(Bucket="runs", Key="toy/metrics.jsonl")["Body"].read().splitlines()
    client.download_file("runs", "toy/best/w.pt", str(tmp_path / "w.pt"))
    picture = client.get_object(Bucket="runs", Key="toy/curves.png")["Body"].read()
    assert [(row["loss"], row["rsum"]) for row in map(json.loads, lines)] == whole[1]
    assert picture.startswith(b"\x89PNG")
    assert any(key.startswith("toy/tensorboard/events") for key in keys)
    assert any(key.startswith("toy/checkpoints/step-") and key.endswith("/optimizer.pt") for key in keys)
    for name, value in torch.load(tmp_path / "w.pt", weights_only=True).items():
        assert torch.equal(value, weights(whole[0])[name])


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


def test_the_last_epoch_can_be_chosen(ray_here, tmp_path: Path) -> None:
    found = fit(ToyRecipe, TrainerConfig(epochs=3, batch_size=4, select_by="epoch"), OPTIM, str(tmp_path))
    assert found.best_epoch == 2
