"""Laws of the losses by name, for any batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from xmatch.errors import InputError
from xmatch.training import losses
from xmatch.training.objectives import OBJECTIVES, LossConfig, Scored, objective, same_rows

LAW = settings(deadline=None, max_examples=25)

BATCHWISE = ("batchwise_hinge", "hardest_triplet", "info_nce", "sigmoid")
"""All images of the batch are negatives, so the order of rows does not count."""
CONFIG = LossConfig(margin=0.2)


def scored(name: str, seed: int, rows: torch.Tensor, config: LossConfig = CONFIG, epoch: int = 0) -> Scored:
    """A batch whose image `rows` (B,) say which captions share an image."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(rows), 3, 4) if OBJECTIVES[name].level == "token" else (len(rows), 4)
    return Scored(
        text=normalize(torch.randn(*shape, generator=draw), dim=-1),
        image=normalize(torch.randn(int(rows.max()) + 1, 4, generator=draw), dim=-1)[rows],
        mask=torch.ones(len(rows), 3),
        same_image=same_rows(rows, config),
        logit_scale=torch.tensor(5.0),
        logit_bias=torch.tensor(-1.0),
        epoch=epoch,
    )


def value(name: str, given_: Scored, config: LossConfig = CONFIG) -> float:
    return float(objective(name).loss(given_, config))


batches = st.lists(st.integers(0, 5), min_size=2, max_size=9).map(torch.tensor)


@LAW
@given(rows=batches, seed=st.integers(0, 9), reduction=st.sampled_from(["mean", "sum"]))
@pytest.mark.parametrize("name", BATCHWISE)
def test_the_order_of_rows_does_not_count(name: str, rows: torch.Tensor, seed: int, reduction: str) -> None:
    config = LossConfig(margin=0.2, reduction=reduction)
    whole = scored(name, seed, rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    moved = whole._replace(
        text=whole.text[order], image=whole.image[order], same_image=whole.same_image[order][:, order]
    )
    assert value(name, moved, config) == pytest.approx(value(name, whole, config), abs=1e-5, rel=1e-5)


@LAW
@given(seed=st.integers(0, 9), half=st.integers(1, 4))
@pytest.mark.parametrize("name", ["paired_hinge", "sentence_paired_hinge"])
def test_partners_may_turn_round_together(name: str, seed: int, half: int) -> None:
    whole = scored(name, seed, torch.arange(2 * half))
    moved = whole._replace(text=whole.text.roll(1, 0), image=whole.image.roll(1, 0))
    assert value(name, moved) == pytest.approx(value(name, whole), abs=1e-6)


def slopes(name: str, rows: torch.Tensor, seed: int, config: LossConfig, epoch: int = 0) -> torch.Tensor:
    """(B, B): how the loss changes with the score of each pair; images are axes, so texts are the scores themselves."""
    batch = scored(name, seed, rows, config, epoch)
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(rows), len(rows), generator=draw).div(4).requires_grad_()
    objective(name).loss(batch._replace(text=scores, image=torch.eye(len(rows))), config).backward()
    return scores.grad


@LAW
@given(rows=batches, seed=st.integers(0, 9), epoch=st.integers(0, 1))
@pytest.mark.parametrize("name", BATCHWISE)
def test_captions_of_one_image_are_never_negatives(name: str, rows: torch.Tensor, seed: int, epoch: int) -> None:
    config = LossConfig(name=name, margin=0.9, warmup_epochs=1)
    own = torch.eye(len(rows), dtype=torch.bool)
    others_of_image = (rows[:, None] == rows) & ~own
    grad = slopes(name, rows, seed, config, epoch)
    assert (grad[others_of_image] == 0).all()
    assert (grad[own] <= 0).all()
    assert (grad[~own] >= 0).all()
    if name in ("info_nce", "sigmoid"):
        assert (grad[~own & ~others_of_image] > 0).all()
        as_original = slopes(name, rows, seed, replace(config, same_image="negative"), epoch)
        assert (as_original[~own] > 0).all()


@LAW
@given(seed=st.integers(0, 9))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_text_image_and_scalars(name: str, seed: int) -> None:
    batch = scored(name, seed, torch.tensor([0, 1, 2, 2, 3, 4]))
    parts = {field: getattr(batch, field).clone().requires_grad_() for field in ("text", "image")}
    parts |= {field: getattr(batch, field).clone().requires_grad_() for field in OBJECTIVES[name].learns}
    OBJECTIVES[name].loss(batch._replace(**parts), LossConfig(margin=2.5)).backward()
    for field, part in parts.items():
        assert torch.isfinite(part.grad).all(), field
        assert part.grad.abs().sum() > 0, field


@LAW
@given(rows=batches, seed=st.integers(0, 9), margin=st.floats(0.01, 1.0))
def test_the_hardest_negative_costs_no_more_than_all_and_no_less_than_their_mean(rows, seed, margin) -> None:
    batch = scored("hardest_triplet", seed, rows)
    arguments = (batch.text, batch.image, margin, batch.same_image, "sum")
    hardest, every = losses.hardest_triplet(*arguments), losses.all_negatives_hinge(*arguments)
    assert hardest <= every + 1e-5
    assert every <= (len(rows) - 1) * hardest + 1e-4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_warm_up_takes_all_negatives(reduction: str) -> None:
    config = LossConfig(name="hardest_triplet", margin=0.2, warmup_epochs=1, reduction=reduction)
    batch = scored("hardest_triplet", 0, torch.arange(6))
    for epoch, same_as in ((0, losses.all_negatives_hinge), (1, losses.hardest_triplet)):
        expected = same_as(batch.text, batch.image, 0.2, batch.same_image, reduction)
        assert value("hardest_triplet", batch._replace(epoch=epoch), config) == pytest.approx(float(expected))


@LAW
@given(seed=st.integers(0, 20), count=st.integers(2, 8))
def test_limits_of_info_nce(seed: int, count: int) -> None:
    """Without a scale every image is a guess, log B; with a great one only the hardest counts, as a hinge at 0."""
    batch = scored("info_nce", seed, torch.arange(count))
    assert value("info_nce", batch._replace(logit_scale=torch.tensor(0.0))) == pytest.approx(math.log(count), abs=1e-5)
    scale = 1e5
    scores = (batch.text @ batch.image.T).double()
    own, others = scores.diagonal(), scores.masked_fill(torch.eye(count, dtype=torch.bool), -math.inf)
    hinges = (others.amax(1) - own).clamp_min(0).mean() / 2 + (others.amax(0) - own).clamp_min(0).mean() / 2
    found = value("info_nce", batch._replace(logit_scale=torch.tensor(scale))) / scale
    assert found == pytest.approx(float(hinges), abs=1e-4)


@LAW
@given(seed=st.integers(0, 20), count=st.integers(1, 8))
def test_limits_of_the_sigmoid(seed: int, count: int) -> None:
    """Scale and bias 0: each of B x B questions costs log 2. A great negative bias: only the B yes cost, -bias each."""
    batch = scored("sigmoid", seed, torch.arange(count))._replace(logit_scale=torch.tensor(0.0))
    assert value("sigmoid", batch._replace(logit_bias=torch.tensor(0.0))) == pytest.approx(
        count * math.log(2), rel=1e-5
    )
    assert value("sigmoid", batch._replace(logit_bias=torch.tensor(-50.0))) == pytest.approx(50.0, rel=1e-5)


def test_sigmoid_is_siglips_algorithm() -> None:
    """Zhai et al. 2023, algorithm 1: -sum(log_sigmoid(labels * logits)) / n."""
    batch = scored("sigmoid", 3, torch.arange(5))
    logits = 5.0 * batch.text @ batch.image.T - 1.0
    labels = 2 * torch.eye(5) - 1
    expected = -torch.nn.functional.logsigmoid(labels * logits).sum() / 5
    assert value("sigmoid", batch) == pytest.approx(float(expected), rel=1e-6)


def test_an_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'hinge'.*paired_hinge.*sigmoid"):
        objective("hinge")


def test_the_names_of_the_configuration_are_the_registry() -> None:
    from typing import get_args, get_type_hints

    assert set(get_args(get_type_hints(LossConfig)["name"])) == set(OBJECTIVES)
