from __future__ import annotations

import pytest
import torch

from xmatch.errors import InputError
from xmatch.training import watch
from xmatch.training.watch import Watch, check_progress, resultant_length

SPREAD = {"text": torch.eye(4), "image": torch.eye(4)}
POINT = {name: torch.eye(4)[:1].expand(5, 4) for name in ("text", "image")}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_its_step_and_what_to_do(loss: float) -> None:
    with pytest.raises(InputError, match=rf"loss became {loss} at step 17.*optim\.lr.*last checkpoint is intact"):
        Watch().step(loss, SPREAD, 17)


def test_a_collapse_must_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_STEPS", 3)
    own = Watch()
    for step, embeddings in enumerate([POINT, POINT, SPREAD, POINT, POINT, {**POINT, "image": torch.eye(4)}]):
        own.step(0.4, embeddings, step)
    own.step(0.4, POINT, 6)
    own.step(0.4, POINT, 7)
    with pytest.raises(InputError, match=r"one point for 3 steps \(loss 0\.4 at step 8\).*loss\.warmup_epochs=1"):
        own.step(0.4, POINT, 8)


def test_embeddings_of_one_row_or_of_no_name_are_no_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_STEPS", 1)
    Watch().step(0.1, {name: rows[:1] for name, rows in POINT.items()}, 0)
    Watch().step(0.1, {"x": POINT["text"]}, 0)


def test_resultant_length_is_one_of_a_point_and_none_of_opposites() -> None:
    assert resultant_length(POINT["text"]) == pytest.approx(1.0)
    assert resultant_length(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 0.0
    assert resultant_length(torch.eye(4)) == pytest.approx(0.5)
    assert resultant_length(torch.eye(4).expand(3, 4, 4)) == pytest.approx(0.5)


def rows(*losses: float, figure: float = 0.2) -> list[dict[str, float]]:
    return [{"epoch": epoch, "loss": loss, "rsum": figure} for epoch, loss in enumerate(losses)]


def test_a_loss_that_stands_at_chance_is_stuck_and_named() -> None:
    with pytest.raises(InputError, match=r"stood at 0\.4 for 3 epochs.*rsum is 0\.20.*loss\.warmup_epochs=1"):
        check_progress(rows(0.7, 0.4, 0.4, 0.4, 0.4), "rsum", chance=1.0)


@pytest.mark.parametrize(
    "history",
    [
        rows(0.4, 0.4, 0.4),
        rows(0.5, 0.4, 0.4, 0.4),
        rows(0.4, 0.4, 0.4, 0.3999),
        rows(0.4, 0.4, 0.4, 0.4, figure=5.0),
        [{"epoch": epoch, "loss": 0.4} for epoch in range(5)],
    ],
    ids=["few epochs", "moved", "moves a little", "above chance", "not validated"],
)
def test_other_histories_go_on(history: list[dict[str, float]]) -> None:
    check_progress(history, "rsum", chance=1.0)
