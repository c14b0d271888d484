"""The two losses of SelfAlign: the original's values and gradients, and the laws they keep."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import selfalign_cases
import torch
from gloo_workers import run_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from selfalign_cases import Encoder, draw, values_of
from small_models import golden
from torch.nn.functional import normalize

from alignment.selfalign.concept import Prototypes, concept_loss, concepts_of
from alignment.selfalign.config import SelfAlignConfig
from alignment.selfalign.context import context_loss
from alignment.selfalign.sinkhorn import soft_assignments
from xmatch.errors import InputError

VALUE = {"atol": 2e-5, "rtol": 1e-4}
GRADIENT = {"atol": 2e-4, "rtol": 1e-3}
LAW = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 2**20)


def real(lengths: torch.Tensor, width: int) -> torch.Tensor:
    return torch.arange(width)[None, :] < lengths[:, None]


def test_concept_loss_is_the_originals() -> None:
    case = golden("selfalign")["lca"]
    regions, words = (torch.tensor(case[name], requires_grad=True) for name in ("v_feats", "t_feats"))
    prototypes = Prototypes(len(case["prototypes_raw"]), regions.shape[-1])
    prototypes.load_state_dict({"weight": torch.tensor(case["prototypes_raw"])})
    everything = torch.ones(regions.shape[:2], dtype=torch.bool)
    found = concepts_of(regions, everything, words, real(torch.tensor(case["t_lengths"]), 6), prototypes())
    numbers = {"epsilon": case["epsilon"], "iterations": case["iters"]}
    torch.testing.assert_close(prototypes.weight.detach(), torch.tensor(case["prototypes_normalized"]), **VALUE)
    assigned = soft_assignments(found.regions.flatten(0, 1), **numbers)
    torch.testing.assert_close(assigned, torch.tensor(case["sinkhorn_Q_rows_are_samples"]), **VALUE)
    loss = concept_loss(found, student_temperature=case["student_temp"], **numbers)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    assert regions.grad is None
    torch.testing.assert_close(prototypes.weight.grad, torch.tensor(case["grad_prototypes"]), **GRADIENT)
    torch.testing.assert_close(words.grad, torch.tensor(case["grad_t"]), **GRADIENT)


@pytest.mark.parametrize("negatives", ["None", "4", "12"])
def test_context_loss_is_the_originals(negatives: str) -> None:
    case = golden("selfalign")["cra"]
    parts, guides = (torch.tensor(case[name], requires_grad=True) for name in ("locals_B_n_D", "global_B_1_D"))
    loss = context_loss(
        guides[:, 0],
        parts,
        torch.ones(parts.shape[:2], dtype=torch.bool),
        torch.eye(len(parts), dtype=torch.bool),
        temperature=case["T"],
        negatives=1000 if negatives == "None" else int(negatives),
        legacy_negatives=True,
    )
    expected = case["by_neg_num"][negatives]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    loss.backward()
    torch.testing.assert_close(parts.grad, torch.tensor(expected["grad_locals"]), **GRADIENT)
    torch.testing.assert_close(guides.grad, torch.tensor(expected["grad_global"]), **GRADIENT)


WORLD = [(seed, count, SelfAlignConfig(negatives=k)) for seed, count in ((1, 4), (2, 6), (3, 8)) for k in (3, 512)]
WORLD += [(4, 6, SelfAlignConfig(context=0)), (5, 6, SelfAlignConfig(concept=0))]


@pytest.mark.slow
def test_workers_together_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """In two processes, whose captions are padded to different widths."""
    found = run_workers(2, selfalign_cases.steps, WORLD, tmp_path)
    for place, (seed, count, config) in enumerate(WORLD):
        alone = selfalign_cases.step(seed, count, config)
        assert len(alone.values) == (config.concept > 0) + (config.context > 0)
        assert float(alone.gradients["map.weight"].norm()) > 1e-4
        for worker in (found[0][place], found[1][place]):
            assert worker.values == pytest.approx(alone.values, rel=1e-5, abs=1e-6)
            assert worker.gradients.keys() == alone.gradients.keys()
            for name, expected in alone.gradients.items():
                torch.testing.assert_close(worker.gradients[name], expected, rtol=1e-4, atol=1e-6)


@LAW
@given(seed=SEED, count=st.integers(1, 30), prototypes=st.integers(1, 9), scale=st.sampled_from([0.1, 1.0, 300.0]))
def test_assignments_are_shares_and_never_overflow(seed: int, count: int, prototypes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(count, prototypes, generator=generator)
    found = soft_assignments(scores, epsilon=0.05, iterations=2)
    assert torch.isfinite(found).all() and (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(count))
    shifted = soft_assignments(scores + 7.0, epsilon=0.05, iterations=2)
    torch.testing.assert_close(shifted, found, rtol=1e-2, atol=1e-3)


def test_many_iterations_use_every_prototype_alike() -> None:
    torch.manual_seed(0)
    scores = normalize(torch.randn(60, 5), dim=1) @ normalize(torch.randn(6, 5), dim=1).T
    sums = soft_assignments(scores, epsilon=0.5, iterations=100).sum(0)
    torch.testing.assert_close(sums, torch.full((6,), 10.0), rtol=1e-3, atol=1e-3)
    greedy = soft_assignments(scores, epsilon=0.5, iterations=1).sum(0)
    assert (greedy - 10).abs().max() > (sums - 10).abs().max()


@LAW
@given(seed=SEED, count=st.integers(1, 6), other=st.sampled_from([0.0, 3.0, -50.0]))
def test_padding_takes_part_in_nothing(seed: int, count: int, other: float) -> None:
    encoder, drawn, config = Encoder(), draw(seed, count), SelfAlignConfig(negatives=4)
    changed = drawn._replace(
        regions=drawn.regions.masked_fill(~drawn.region_mask[..., None], other),
        words=drawn.words.masked_fill(~drawn.word_mask[..., None], other),
    )
    for name, value in values_of(encoder, drawn, config).items():
        torch.testing.assert_close(values_of(encoder, changed, config)[name], value)


@LAW
@given(seed=SEED, count=st.integers(2, 6))
def test_the_order_of_pairs_does_not_matter(seed: int, count: int) -> None:
    encoder, drawn, config = Encoder(), draw(seed, count), SelfAlignConfig(negatives=5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shuffled = type(drawn)(*(part[order] for part in drawn))
    for name, value in values_of(encoder, drawn, config).items():
        torch.testing.assert_close(values_of(encoder, shuffled, config)[name], value)


def units(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape), dim=-1)


def all_of(parts: torch.Tensor) -> torch.Tensor:
    return torch.ones(parts.shape[:2], dtype=torch.bool)


def test_a_pair_alone_has_no_context_loss_but_a_gradient() -> None:
    parts = units(1, 3, 4).requires_grad_()
    loss = context_loss(units(1, 4), parts, all_of(parts), torch.eye(1).bool(), temperature=0.7, negatives=512)
    assert loss.item() == 0.0
    loss.backward()
    assert parts.grad is not None and (parts.grad == 0).all()


def test_captions_of_one_image_are_no_negatives() -> None:
    torch.manual_seed(1)
    guides, parts = units(3, 4), units(3, 2, 4)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    kwargs = {"temperature": 0.7, "negatives": 512}
    found = context_loss(guides, parts, all_of(parts), same, **kwargs)
    against = torch.cat([guides[2] @ parts[0].T, guides[2] @ parts[1].T]) / 0.7
    positive = guides[2] @ parts[2].T / 0.7
    third = (torch.logaddexp(positive, against.logsumexp(0)) - positive).mean()
    first = [_one(guides[i], parts[i], parts[2]) for i in (0, 1)]
    torch.testing.assert_close(found, torch.stack([*first, third]).mean())
    everything = context_loss(guides, parts, all_of(parts), torch.eye(3).bool(), **kwargs)
    assert everything > found


def _one(guide: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    positive, against = guide @ own.T / 0.7, (guide @ others.T / 0.7).logsumexp(0)
    return (torch.logaddexp(positive, against) - positive).mean()


def test_equal_parts_give_the_logarithm_of_the_pool() -> None:
    """A closed form: every logit is the same, so each part is one of 1 + pool."""
    guides, parts = torch.ones(5, 4) / 2, torch.ones(5, 3, 4) / 2
    for negatives, pool in ((1, 1), (7, 7), (512, 12)):
        loss = context_loss(guides, parts, all_of(parts), torch.eye(5).bool(), temperature=0.7, negatives=negatives)
        assert loss.item() == pytest.approx(math.log(1 + pool), rel=1e-6)


def test_words_learn_the_prototype_of_their_region() -> None:
    """Regions at two prototypes; a word at its region's prototype costs little, at the other much."""
    prototypes = torch.eye(2, 4)
    regions = prototypes[None].expand(3, 2, 4)
    words = torch.stack([regions[:, 0], 0.9 * regions[:, 1] + 0.1 * regions[:, 0]], dim=1)
    found = concepts_of(regions, all_of(regions), words, all_of(words), prototypes)
    assert found.nearest.tolist() == [[0, 1]] * 3
    numbers = {"student_temperature": 0.1, "epsilon": 0.05, "iterations": 2}
    near = concept_loss(found, **numbers)
    far = concept_loss(found._replace(nearest=1 - found.nearest), **numbers)
    assert near.item() < 0.01 and far.item() > 5.0


def test_a_padded_region_is_nobodys_nearest() -> None:
    regions, words = torch.eye(3, 4)[None], torch.eye(3, 4)[None]
    mask = torch.tensor([[True, True, False]])
    assert concepts_of(regions, mask, words, all_of(words), torch.eye(2, 4)).nearest[0, 2] in (0, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"context": -0.1}, {"concept": -1}, {"epsilon": 0}, {"negatives": 0}, {"student_temperature": 0}],
)
def test_numbers_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="selfalign"):
        SelfAlignConfig(**wrong)
