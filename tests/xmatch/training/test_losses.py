from __future__ import annotations

import pytest
import torch
from small_models import golden

from xmatch.errors import InputError
from xmatch.training import losses

CASES = ("token_case_A", "token_case_B_margin0.5", "token_case_B_margin0.2")


def tensors(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    text, image = (torch.tensor(case[name], requires_grad=True) for name in ("lang", "visn"))
    return text, image, torch.tensor(case.get("mask", 1.0))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("name", CASES)
def test_paired_hinge_equals_the_original_with_its_gradients(name: str) -> None:
    case = golden("loss_metric")[name]
    text, image, mask = tensors(case)
    loss = losses.paired_hinge(text, image, mask, case["margin"])
    loss.backward()
    assert loss.item() == pytest.approx(case["paired_hinge_loss"], abs=1e-4)
    torch.testing.assert_close(text.grad, torch.tensor(case["grad_lang"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(image.grad, torch.tensor(case["grad_visn"]), atol=1e-4, rtol=0)


def test_sentence_hinge_equals_the_original_with_its_gradients() -> None:
    case = golden("loss_metric")["sent_case_C"]
    text, image, _ = tensors(case)
    loss = losses.sentence_paired_hinge(text, image, case["margin"], reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(case["sent_paired_hinge_loss_SUM"], abs=1e-4)
    torch.testing.assert_close(text.grad, torch.tensor(case["grad_lang"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(image.grad, torch.tensor(case["grad_visn"]), atol=1e-4, rtol=0)


def test_sentence_hinge_mean_is_the_sum_over_the_batch() -> None:
    text, image = unit(6, 4), unit(6, 4, seed=1)
    total = losses.sentence_paired_hinge(text, image, 0.5, reduction="sum")
    assert losses.sentence_paired_hinge(text, image, 0.5).item() == pytest.approx(total.item() / 6)


def test_batchwise_hinge_equals_the_documented_intent() -> None:
    case = golden("loss_metric")["token_case_B_margin0.5"]
    expected = golden("loss_metric")["batchwise_hinge_documented_intent_case_B"]["sum"]
    text, image, mask = tensors(case)
    assert losses.batchwise_hinge(text, image, mask, 0.5).item() == pytest.approx(expected, abs=1e-4)


def test_an_odd_batch_leaves_its_last_sample_out() -> None:
    text, image = unit(5, 4), unit(5, 4, seed=1)
    odd = losses.sentence_paired_hinge(text, image, 0.5, reduction="sum")
    assert odd.item() == losses.sentence_paired_hinge(text[:4], image[:4], 0.5, reduction="sum").item()


def test_a_partner_needs_an_even_batch() -> None:
    with pytest.raises(InputError, match="even batch"):
        losses._partners(3)


ALL_NEGATIVES = {
    "info_nce": lambda t, i, s: losses.info_nce(t, i, torch.tensor(10.0), s),
    "all_negatives_hinge": lambda t, i, s: losses.all_negatives_hinge(t, i, 0.2, s),
    "hardest_triplet": lambda t, i, s: losses.hardest_triplet(t, i, 0.2, s),
}


@pytest.mark.parametrize("name", ALL_NEGATIVES)
def test_permuting_the_batch_permutes_the_gradients(name: str) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    same = torch.eye(5, dtype=torch.bool)
    text, image = unit(5, 6).requires_grad_(), unit(5, 6, seed=1)
    loss = ALL_NEGATIVES[name](text, image, same)
    loss.backward()
    moved = text.detach()[order].requires_grad_()
    ALL_NEGATIVES[name](moved, image[order], same).backward()
    torch.testing.assert_close(moved.grad, text.grad[order])


@pytest.mark.parametrize("name", ALL_NEGATIVES)
def test_captions_of_one_image_are_no_negatives_of_each_other(name: str) -> None:
    rows = torch.tensor([0, 0, 1, 2])
    same = rows[:, None] == rows[None, :]
    image = unit(3, 6)[rows]
    text = unit(4, 6, seed=2)
    swapped = text.clone()
    swapped[1] = image[0]  # a perfect second caption of image 0 must not hurt the first one
    before, after = ALL_NEGATIVES[name](text, image, same), ALL_NEGATIVES[name](swapped, image, same)
    assert torch.isfinite(before)
    assert after < before


@pytest.mark.parametrize("name", ALL_NEGATIVES)
def test_gradients_are_finite_with_a_learnt_scale(name: str) -> None:
    rows = torch.tensor([0, 0, 1])
    text = unit(3, 4).requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    same = rows[:, None] == rows[None, :]
    (losses.info_nce(text, unit(3, 4, seed=1), scale.exp(), same)).backward()
    assert torch.isfinite(scale.grad)
    assert torch.isfinite(text.grad).all()
