from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raydeploy.run_folder import RunFolder
from raydeploy.training import TrainerConfig
from xmatch.errors import InputError


def figures(epoch: int, loss: float) -> dict:
    return {"epoch": epoch, "loss": loss, "rsum": 10.0 * epoch}


def test_a_person_finds_figures_curves_and_tensorboard(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.step(10, 0.7)
    folder.record(figures(0, 0.5), "rsum")
    history = folder.record(figures(1, 0.4), "rsum")
    assert history == [figures(0, 0.5), figures(1, 0.4)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == history
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    [events] = (tmp_path / "tensorboard").iterdir()
    assert {b"step/loss", b"rsum"} <= {name for name in (b"step/loss", b"rsum") if name in events.read_bytes()}


def test_an_epoch_that_ran_twice_counts_as_it_ran_last(tmp_path: Path) -> None:
    RunFolder(str(tmp_path)).record(figures(0, 0.5), "rsum")
    again = RunFolder(str(tmp_path))  # after a restart
    assert again.record(figures(0, 0.4), "rsum") == [figures(0, 0.4)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_best_model_is_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    for name in ("first", "second"):

        def save(place: str, name: str = name) -> None:
            Path(place).mkdir()
            Path(place, name).write_text(name)

        folder.keep_best(save)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["second"]
    assert not (tmp_path / "best.new").exists()


def test_a_save_that_fails_leaves_the_best_model(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.keep_best(lambda place: Path(place).mkdir())
    with pytest.raises(OSError, match="full"):
        folder.keep_best(lambda place: (_ for _ in ()).throw(OSError("disk full")))
    assert (tmp_path / "best").is_dir()


def test_wandb_that_is_not_installed_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"trainer\.wandb_project needs.*pip install wandb"):
        TrainerConfig(wandb_project="mine")


def test_wandb_that_is_installed_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple] = []
    run = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **kw: logged.append((kw["project"],)) or run))
    assert TrainerConfig(wandb_project="mine").wandb_project == "mine"
    RunFolder(str(tmp_path), "mine").record(figures(2, 0.5), "rsum")
    assert logged == [("mine",), ({"loss": 0.5, "rsum": 20.0}, 2)]
