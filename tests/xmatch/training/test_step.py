"""One step of training, computed in several ways that must agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gloo_workers import Case, step
from pair_recipe import PairRecipe

from xmatch.errors import InputError
from xmatch.training.objectives import OBJECTIVES, LossConfig
from xmatch.training.recipe import PartedLoss, SampleKey
from xmatch.training.step import StepConfig, Stepper, check_step


def assert_equal_steps(one, other, atol: float = 2e-6) -> None:
    assert one.loss == pytest.approx(other.loss, abs=atol)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, other.gradients[name], atol=atol, rtol=1e-5)


def computed(recipe: PairRecipe, config: StepConfig, rows: int = 12):
    """Loss and gradients of the first rows of a recipe."""
    model, indices = recipe.build_model(), np.arange(rows)
    outcome = Stepper(recipe, model, config).backward(
        recipe.batch(indices, SampleKey(3, 0)),
        torch.ones(rows, dtype=torch.bool),
        samples=torch.from_numpy(indices),
        epoch=0,
        seed=5,
    )
    return outcome, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [1, 5, 12, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_a_cached_step_is_the_whole_step(loss: str, dropout: float, rows: int) -> None:
    case = Case(LossConfig(name=loss), 24, 12, dropout)
    assert_equal_steps(step(case._replace(step=StepConfig(cached_rows=rows))), step(case))


@pytest.mark.parametrize("size", [(24, 12), (7, 12), (1, 12)])
def test_a_cached_last_step_leaves_filled_up_rows_out(size: tuple[int, int]) -> None:
    case = Case(LossConfig(name="info_nce"), *size)
    assert_equal_steps(step(case._replace(step=StepConfig(cached_rows=4))), step(case))


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_accumulated_parts_are_the_mean_of_their_own_steps(loss: str) -> None:
    recipe = PairRecipe(LossConfig(name=loss), dropout=0.3)
    model = recipe.build_model()
    stepper = Stepper(recipe, model, StepConfig())
    losses = []
    for start in (0, 4, 8):  # gradients of three steps add up in the parameters
        indices = np.arange(start, start + 4)
        outcome = stepper.backward(
            recipe.batch(np.arange(12), SampleKey(3, 0)) | recipe.batch(indices, SampleKey(3, 0)),
            torch.ones(4, dtype=torch.bool),
            samples=torch.from_numpy(indices),
            epoch=0,
            seed=5,
        )
        losses.append(float(outcome.loss))
    outcome, gradients = computed(recipe, StepConfig(accumulate=3))
    assert float(outcome.loss) == pytest.approx(sum(losses) / 3, abs=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad / 3, atol=2e-6, rtol=1e-5)


class MeanRecipe(PairRecipe):
    """A loss that is a mean over rows, so that parts weighted by rows give the whole."""

    def loss(self, model, embeddings, epoch):
        return (embeddings["text"] - embeddings["image"]).square().sum(-1).mean()


@pytest.mark.parametrize("accumulate", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("valid", [12, 7, 1])
def test_parts_count_by_their_real_rows(accumulate: int, valid: int) -> None:
    recipe = MeanRecipe(LossConfig(name="info_nce"))
    found = []
    for config in (StepConfig(), StepConfig(accumulate=accumulate)):
        model = recipe.build_model()
        outcome = Stepper(recipe, model, config).backward(
            recipe.batch(np.arange(12), SampleKey(3, 0)),
            torch.arange(12) < valid,
            samples=torch.arange(12),
            epoch=0,
            seed=5,
        )
        assert all(len(rows) <= valid for rows in outcome.embeddings.values())
        found.append((float(outcome.loss), model.text[0].weight.grad))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [StepConfig(accumulate=2), StepConfig(cached_rows=4)])
def test_parts_are_refused_where_batch_norm_would_see_them(config: StepConfig) -> None:
    recipe = PairRecipe(LossConfig(name="info_nce"), batch_norm=True)
    name = "accumulate" if config.accumulate > 1 else "cached_rows"
    with pytest.raises(InputError, match=rf"trainer\.{name} cuts a batch.*BatchNorm.*statistics"):
        Stepper(recipe, recipe.build_model(), config)
    check_step(recipe.build_model().eval(), config)
    check_step(recipe.build_model(), StepConfig())
    without = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, affine=False))
    with pytest.raises(InputError, match="BatchNorm"):
        check_step(without, config)


def test_a_batch_norm_that_is_never_used_does_not_count() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    check_step(model, StepConfig(cached_rows=4))


def test_two_ways_to_save_memory_exclude_each_other() -> None:
    with pytest.raises(InputError, match="choose one"):
        StepConfig(accumulate=2, cached_rows=3)
    with pytest.raises(InputError, match="at least"):
        StepConfig(accumulate=0)


@pytest.mark.parametrize("cached", [0, 5])
@pytest.mark.parametrize(("precision", "slack"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_comes_near_the_full_one(precision, slack: float, cached: int) -> None:
    recipe = PairRecipe(LossConfig(name="info_nce"))
    whole, gradients = computed(recipe, StepConfig())
    half, halves = computed(recipe, StepConfig(precision=precision, cached_rows=cached))
    assert float(half.loss) == pytest.approx(float(whole.loss), abs=slack)
    assert half.embeddings["text"].dtype == torch.float32
    scale = 2.0**16 if precision == "fp16" else 1.0  # the gradient scaler's first factor
    assert set(halves) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(halves[name] / scale, gradient, atol=slack, rtol=0.2)
    assert any(not torch.equal(halves[name] / scale, gradients[name]) for name in gradients)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    loss = LossConfig(name="paired_hinge")
    whole, gradients = computed(PairRecipe(loss, dropout=dropout), StepConfig())
    again, others = computed(PairRecipe(loss, dropout=dropout, checkpointing=True), StepConfig())
    assert float(whole.loss) == float(again.loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-7, rtol=1e-6)


def test_the_factor_scales_gradients_and_not_the_loss() -> None:
    recipe = PairRecipe(LossConfig(name="info_nce"))
    model, other = recipe.build_model(), recipe.build_model()
    arguments = (recipe.batch(np.arange(6), SampleKey(3, 0)), torch.ones(6, dtype=torch.bool))
    more = {"samples": torch.arange(6), "epoch": 0, "seed": 1}
    whole = Stepper(recipe, model, StepConfig()).backward(*arguments, **more)
    quarter = Stepper(recipe, other, StepConfig()).backward(*arguments, **more, factor=0.25)
    assert float(whole.loss) == float(quarter.loss)
    torch.testing.assert_close(other.text[0].weight.grad, model.text[0].weight.grad / 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_the_plain_one() -> None:
    torch.compiler.reset()
    loss = LossConfig(name="info_nce")
    plain, compiled = (computed(PairRecipe(loss), StepConfig(compile=c)) for c in (False, True))
    # Compiled dropout has other salts than the plain one, but by sample all the same: a part has the whole's masks.
    parts = [computed(PairRecipe(loss, dropout=0.3), StepConfig(compile=True, cached_rows=rows)) for rows in (0, 6)]
    for one, other in ((plain, compiled), parts):
        assert float(one[0].loss) == pytest.approx(float(other[0].loss), abs=1e-5)
        for name, gradient in one[1].items():
            torch.testing.assert_close(other[1][name], gradient, atol=1e-5, rtol=1e-4)
    assert abs(float(parts[0][0].loss) - float(plain[0].loss)) > 1e-3


class PartedRecipe(PairRecipe):
    """Its loss is half of the loss, and the other half."""

    def loss(self, model, embeddings, epoch):
        whole = super().loss(model, embeddings, epoch)
        return PartedLoss(whole, {"half": whole / 2, "other": whole / 2})


@pytest.mark.parametrize("config", [StepConfig(), StepConfig(accumulate=3), StepConfig(cached_rows=5)])
def test_parts_of_a_loss_are_reported_beside_it(config: StepConfig) -> None:
    plain, gradients = computed(PairRecipe(LossConfig(name="info_nce")), config)
    outcome, same = computed(PartedRecipe(LossConfig(name="info_nce")), config)
    assert not plain.parts
    assert outcome.loss == plain.loss
    assert {name: value.item() for name, value in outcome.parts.items()} == pytest.approx(
        {"half": plain.loss.item() / 2, "other": plain.loss.item() / 2}
    )
    assert not any(value.requires_grad for value in outcome.parts.values())
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same[name])
