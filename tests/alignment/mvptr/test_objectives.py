"""The objectives: the original's numbers with its draws, and the laws they keep."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvptr_cases import CLOSE, golden, golden_rank
from torch.nn.functional import normalize

from alignment.mvptr.losses_config import MvptrLossConfig, TopRegions
from alignment.mvptr.objectives import (
    Scores,
    draws_of,
    hard_negatives,
    itm_loss,
    logit_scale,
    masked_rows,
    masked_terms,
    other_images,
    phrase_scores,
    same_images,
    vsc_loss,
    wpg_loss,
)
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

LAW = settings(deadline=None, max_examples=40)
SEED, COUNT = st.integers(0, 10_000), st.integers(1, 7)
CHOICES: list[TopRegions] = list(get_args(TopRegions))


def unit(count: int, seed: int, width: int = 4) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, count, (count,), generator=torch.Generator().manual_seed(seed))


def test_vsc_is_that_of_the_original() -> None:
    case = golden("vsc")
    text, image = torch.tensor(case["global_txt"]), torch.tensor(case["global_img"])
    torch.testing.assert_close(text @ image.T, torch.tensor(case["sim"]), **CLOSE)
    scale = logit_scale(torch.tensor(math.log(1 / 0.07)), MvptrLossConfig(max_logit_scale=0.0))
    same = same_images(torch.zeros(5, dtype=torch.int64), MvptrLossConfig(same_image="negative"))
    assert vsc_loss(text, image, scale, same).item() == pytest.approx(case["loss"], rel=1e-5)


class Grounding:
    """The golden case of phrase grounding as this package takes it."""

    def __init__(self) -> None:
        self.case = golden("wpg")
        places = torch.arange(9)
        sequence = torch.tensor(self.case["sequence_output"])
        phrases, regions = torch.tensor(self.case["phrase_index"]), torch.tensor(self.case["img_index"])
        self.phrases, self.regions = sequence[:, :4], sequence[:, 4:]
        self.phrase_mask = ((places >= phrases[:, :1]) & (places < phrases[:, 1:]))[:, :4]
        self.region_mask = ((places >= regions[:, :1]) & (places < regions[:, 1:]))[:, 4:]

    def scores(self, draws: list[list[int]], images: list[int], choice: TopRegions = "random_of_top3") -> Scores:
        """Scores with drawn ranks, given for each caption that has phrases."""
        drawn, given = torch.zeros(self.phrase_mask.shape, dtype=torch.float64), iter(draws)
        for row, mask in enumerate(self.phrase_mask):
            if mask.any():
                drawn[row, mask] = golden_rank(next(given))
        return phrase_scores(
            self.phrases, self.phrase_mask, self.regions[images], self.region_mask[images], drawn, choice
        )


def test_phrase_grounding_is_that_of_the_original() -> None:
    one = Grounding()
    case, own = one.case, [0, 1, 2]
    positive = one.scores(case["pos_draws_rank_in_top3"], own)
    torch.testing.assert_close(positive.value, torch.tensor(case["pos_sims"]), **CLOSE)
    assert positive.exists.tolist() == [True, True, False]
    positive = one.scores(case["sample_draws"][0::2], own)
    negative = one.scores(case["sample_draws"][1::2], case["sample_neg_image"])
    torch.testing.assert_close(positive.value, torch.tensor(case["sample_pos"]), **CLOSE)
    torch.testing.assert_close(negative.value, torch.tensor(case["sample_neg"]), **CLOSE)
    assert wpg_loss(positive, negative, case["margin"]).item() == pytest.approx(case["wpg_loss"], rel=1e-4)


def test_max_and_mean_are_those_of_the_original_similarities() -> None:
    one = Grounding()
    matrices = [torch.tensor(rows) for rows in one.case["pos_sim_matrices"][:2]]
    nothing = one.case["pos_draws_rank_in_top3"]
    for choice, of in (("max", lambda m: m.amax(1)), ("mean_top3", lambda m: m.topk(3, 1).values.mean(1))):
        expected = [of(matrix).mean().item() for matrix in matrices]
        assert one.scores(nothing, [0, 1, 2], choice).value.tolist() == pytest.approx([*expected, 0.0], abs=1e-5)


@LAW
@given(seed=SEED, regions=st.integers(0, 5), choice=st.sampled_from(CHOICES))
def test_a_phrase_score_is_a_cosine_and_padding_is_never_seen(seed: int, regions: int, choice: TopRegions) -> None:
    draw = torch.Generator().manual_seed(seed)
    phrases, features = torch.randn(3, 4, 5, generator=draw), torch.randn(3, 5, 5, generator=draw)
    mask = torch.rand(3, 4, generator=draw) < 0.5
    known = torch.arange(5).expand(3, 5) < regions
    draws = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    found = phrase_scores(phrases, mask, features, known, draws, choice)
    noisy = torch.where(known[..., None], features, features + 9.0)
    again = phrase_scores(torch.where(mask[..., None], phrases, -phrases), mask, noisy, known, draws, choice)
    torch.testing.assert_close(found.value, again.value)
    assert found.exists.tolist() == [bool(row.any()) and regions > 0 for row in mask]
    assert (found.value.abs() <= 1 + 1e-6).all()
    most = phrase_scores(phrases, mask, features, known, draws, "max").value
    assert (found.value <= most + 1e-6).all()
    if regions == 1:
        torch.testing.assert_close(found.value, most)


def test_each_of_the_three_best_regions_is_drawn_and_of_two_each() -> None:
    phrases, regions = torch.ones(1, 1, 2), torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, -1.0], [1.0, -3.0]]])
    for known, expected in ((4, [1.0, 0.7071, -0.4472]), (2, [1.0, 0.7071])):
        mask = torch.arange(4)[None] < known
        found = [
            phrase_scores(
                phrases, torch.ones(1, 1).bool(), regions, mask, torch.tensor([[u]]), "random_of_top3"
            ).value.item()
            for u in torch.linspace(0, 0.999, 12).tolist()
        ]
        assert sorted({round(value, 4) for value in found}, reverse=True) == expected
        assert all(found.count(found[0]) * len(expected) == 12 for _ in expected)


def test_captions_without_phrases_and_images_without_regions_cost_nothing_and_have_a_gradient() -> None:
    phrases = torch.randn(2, 3, 4, requires_grad=True)
    regions = torch.randn(2, 2, 4, requires_grad=True)
    for mask, known in ((False, True), (True, False)):
        scores = phrase_scores(
            phrases, torch.full((2, 3), mask), regions, torch.full((2, 2), known), torch.zeros(2, 3), "mean_top3"
        )
        loss = wpg_loss(scores, scores, 0.2)
        loss.backward()
        assert loss.item() == 0.0
        assert not phrases.grad.any() and not regions.grad.any()
        assert torch.isfinite(phrases.grad).all() and torch.isfinite(regions.grad).all()


@LAW
@given(count=COUNT, seed=SEED, hard=st.sampled_from(["hardest", "sampled"]))
def test_a_negative_keeps_one_side_and_never_shows_the_same_image(count: int, seed: int, hard: str) -> None:
    config = MvptrLossConfig(hard=hard)
    images, draws = some_images(count, seed), draws_of(range(count), SampleKey(seed, 0), 2)
    same = same_images(images, config)
    text, image = unit(count, seed), unit(count, seed + 1)
    found = hard_negatives(text, image, torch.tensor(20.0), same, draws, config)
    assert sorted(found.own.tolist()) == list(range(count))
    kept_text = (found.text == found.own).tolist()
    assert all(k or i == o for k, i, o in zip(kept_text, found.image.tolist(), found.own.tolist(), strict=True))
    assert found.exists.tolist() == [bool((~same[row]).any()) for row in found.own.tolist()]
    pairs = zip(found.text[found.exists].tolist(), found.image[found.exists].tolist(), strict=True)
    assert not any(bool(same[t, i]) for t, i in pairs)
    if found.exists.all():
        assert sum(kept_text) == count // 2
    if hard == "hardest":
        for t, i, own, exists in zip(*(part.tolist() for part in found), strict=True):
            others = [j for j in range(count) if not same[own, j]]
            best = max((text[own] @ image[j] if t == own else text[j] @ image[own] for j in others), default=None)
            assert not exists or text[t] @ image[i] == pytest.approx(float(best), abs=1e-6)


def test_drawn_negatives_follow_the_softmax() -> None:
    config = MvptrLossConfig(hard="sampled")
    text = unit(3, 5)
    image = unit(3, 6)
    counts = torch.zeros(3, 3)
    for seed in range(600):
        draws = draws_of(range(3), SampleKey(seed, 0), 1)._replace(order=torch.tensor([0.0, 0.5, 0.9]))
        found = hard_negatives(text, image, torch.tensor(3.0), torch.eye(3, dtype=torch.bool), draws, config)
        counts[0, found.image[0]] += 1
    expected = (3.0 * text @ image.T).fill_diagonal_(float("-inf")).softmax(1)[0]
    torch.testing.assert_close(counts[0] / 600, expected, rtol=0, atol=0.06)


@LAW
@given(count=COUNT, seed=SEED)
def test_another_image_is_another_image(count: int, seed: int) -> None:
    same = same_images(some_images(count, seed), MvptrLossConfig())
    rows, exists = other_images(same, draws_of(range(count), SampleKey(seed, 0), 1).other)
    assert exists.tolist() == (~same).any(1).tolist()
    assert not same[torch.arange(count)[exists], rows[exists]].any()


@LAW
@given(seed=SEED, count=COUNT)
def test_draws_belong_to_the_sample(seed: int, count: int) -> None:
    one, key = draws_of(range(count), SampleKey(seed, 3), 4), SampleKey(seed, 3)
    again = draws_of([count - 1, 0], key, 4)
    for ours, theirs in zip(one, again, strict=True):
        assert torch.equal(ours[[count - 1, 0]], theirs)
        assert ((ours >= 0) & (ours < 1)).all()
    assert not torch.equal(one.order, draws_of(range(count), SampleKey(seed, 4), 4).order)


def test_captions_of_one_image_are_negatives_only_where_asked() -> None:
    images = torch.tensor([7, 7, 9])
    assert same_images(images, MvptrLossConfig()).tolist() == [[True, True, False]] * 2 + [[False, False, True]]
    assert torch.equal(same_images(images, MvptrLossConfig(same_image="negative")), torch.eye(3, dtype=torch.bool))


def test_the_scale_is_clamped_unless_told() -> None:
    ten = torch.tensor(10.0)
    assert logit_scale(ten, MvptrLossConfig()).item() == 100.0
    assert logit_scale(ten, MvptrLossConfig(max_logit_scale=0.0)).item() == pytest.approx(math.exp(10))


def test_matching_leaves_out_negatives_that_do_not_exist() -> None:
    pair, wrong = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [50.0, 0.0]])
    found = itm_loss(pair, wrong, torch.tensor([True, False]), 0).item()
    assert found == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2, rel=1e-5)
    flipped = itm_loss(pair.flip(1), wrong.flip(1), torch.tensor([True, False]), 1).item()
    assert flipped == pytest.approx(found)


@LAW
@given(seed=SEED)
def test_masked_places_count_alike_wherever_they_are(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.where(torch.rand(4, 6, generator=draw) < 0.4, torch.randint(0, 9, (4, 6), generator=draw), -1)
    logits = torch.randn(4, 6, 9, generator=draw)
    rows, columns = masked_rows(labels)
    terms = masked_terms(logits[rows, columns], labels[rows, columns], rows, 4)
    assert terms.places.tolist() == (labels >= 0).sum(1).tolist()
    if len(rows):
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)
        torch.testing.assert_close(terms.mean, expected)
    else:
        assert terms.mean.item() == 0.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"use": ("mlm", "nsp")}, "'nsp'; choose of mcr"),
        ({"use": ()}, "every loss is off"),
        ({"use": ("mlm",), "mlm": 0.0}, "every loss is off"),
        ({"itm": -1.0}, "must not be negative"),
        ({"max_logit_scale": -1.0}, "must not be negative"),
    ],
)
def test_losses_that_cannot_be_meant_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        MvptrLossConfig(**wrong)
