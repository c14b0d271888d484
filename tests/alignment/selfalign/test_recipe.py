"""The recipe of SelfAlign on VSRN, CAMERA and VSE-infinity: it learns, resumes, saves, and workers are as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo_workers import run_workers
from safetensors.torch import load_file
from selfalign_cases import HOSTS, SIDE_LOSSES, first_step, first_steps, host_recipe
from small_models import tiny_model_object
from torch import nn

from alignment.selfalign.config import SelfAlignConfig
from alignment.selfalign.recipe import SelfAlignRecipe, SelfAlignRecipeConfig, check_model
from xmatch import DualEncoder
from xmatch.errors import InputError
from xmatch.training.leakage import SEEN_SCHEMA
from xmatch.training.objectives import LossConfig
from xmatch.training.optim import GroupConfig, OptimConfig, build_optimizer, clip_gradients
from xmatch.training.recipe import SampleKey
from xmatch.training.step import StepConfig, Stepper
from xmatch.training.trained_model import publish_model

KEY = SampleKey(9, 1)
EVERYTHING = np.arange(12)
EACH_HOST = pytest.mark.parametrize("host", HOSTS)


def whole_step(recipe: SelfAlignRecipe, model: nn.Module, indices: np.ndarray, epoch: int = 1, seed: int = 1):
    stepper = Stepper(recipe, model, StepConfig())
    return stepper.backward(
        recipe.batch(indices, KEY),
        torch.ones(len(indices), dtype=torch.bool),
        samples=torch.from_numpy(indices),
        epoch=epoch,
        seed=seed,
    )


@EACH_HOST
def test_the_loss_is_the_weighted_sum_of_its_parts_and_falls(tmp_path: Path, host: str) -> None:
    torch.manual_seed(0)
    weights = SelfAlignConfig(concept=0.5, context=2.0, prototypes=8)
    recipe = host_recipe(tmp_path, host, pairs=12, selfalign=weights)
    model = recipe.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    seen = []
    for _ in range(8):
        optimizer.zero_grad()
        outcome = whole_step(recipe, model, EVERYTHING)
        parts = {name: float(value) for name, value in outcome.parts.items()}
        expected = {"matching": 1.0, "concept": 0.5, "context": 2.0} | SIDE_LOSSES[host].weights
        assert parts.keys() == expected.keys()
        total = sum(weight * parts[name] for name, weight in expected.items())
        assert float(outcome.loss) == pytest.approx(total, rel=1e-5)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learning(model))
        seen.append(parts)
        optimizer.step()
    assert all(seen[-1][name] < seen[0][name] for name in ("concept", "context"))


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@EACH_HOST
def test_a_row_does_not_depend_on_who_else_is_in_the_batch(tmp_path: Path, host: str) -> None:
    recipe = host_recipe(tmp_path, host, pairs=12)
    model = recipe.build_model().eval()
    with torch.no_grad():
        alone, together = (recipe.embed(model, recipe.batch(rows, KEY)) for rows in (EVERYTHING[3:5], EVERYTHING))
    assert {"concept_regions", "concept_nearest", "context_image_guide", "context_text_parts"} <= set(alone)
    for name, rows in alone.items():
        same = together[name][3:5]
        if rows.ndim > 1 and name.startswith(("concept_word", "concept_nearest", "context_text")):
            same = same[:, : rows.shape[1]]  # beyond the own width there is only padding
        if name == "concept_nearest":
            rows, same = rows * alone["concept_word_mask"], same * alone["concept_word_mask"]
        torch.testing.assert_close(rows, same, rtol=1e-4, atol=1e-5)


def test_both_losses_off_are_the_host_alone(tmp_path: Path) -> None:
    recipe = host_recipe(tmp_path, "camera", SelfAlignConfig(concept=0, context=0), pairs=12, context_head=False)
    torch.manual_seed(0)
    model = recipe.build_model()
    assert not model.training_only
    found = whole_step(recipe, model, EVERYTHING)
    torch.manual_seed(0)
    host = recipe.matching.build_model()
    alone = whole_step(recipe.matching, host, EVERYTHING)
    assert set(found.parts) == {"matching", "diversity"}
    assert float(found.loss) == pytest.approx(float(alone.loss), rel=1e-6)


@EACH_HOST
def test_saved_models_have_no_weights_of_training_alone_but_checkpoints_do(tmp_path: Path, host: str) -> None:
    recipe = host_recipe(tmp_path, host, pairs=12)
    model = recipe.build_model()
    whole_step(recipe, model, EVERYTHING)
    folder = str(tmp_path / "checkpoint")
    recipe.save_model(model, folder)
    saved = load_file(f"{folder}/model.safetensors")
    assert not [name for name in saved if "training_only" in name or "prototype" in name]
    assert {f"{side}_context_head.gate.2.weight" for side in ("image", "text")} <= set(saved)
    aside = load_file(f"{folder}/training_only.safetensors")
    assert {name.split(".")[0] for name in aside} == {"prototypes", *(["caption_generator"] if host == "vsrn" else [])}
    again = recipe.build_model()
    assert not torch.equal(again.training_only["prototypes"].weight, model.training_only["prototypes"].weight)
    recipe.load_model(again, folder)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    published = tmp_path / "published"
    publish_model(
        folder,
        str(published),
        given=model.config,
        dtype="float32",
        card="",
        seen=SEEN_SCHEMA.empty_table(),
        init_from="",
    )
    assert not (published / "training_only.safetensors").exists()
    loaded = DualEncoder.from_pretrained(str(published))
    assert not loaded.training_only and loaded.embedding_width == 3 * loaded.config.dim


def test_prototypes_can_wait(tmp_path: Path) -> None:
    recipe = host_recipe(tmp_path, "camera", pairs=12)
    groups = GroupConfig(frozen_epochs={"training_only.prototypes": 1})
    recipe.matching.config = replace(recipe.matching.config, groups=groups)
    model = recipe.build_model()
    whole_step(recipe, model, EVERYTHING)
    optimizer = build_optimizer(recipe.parameter_groups(model), OptimConfig())
    prototypes = model.training_only["prototypes"].weight
    assert prototypes.grad is not None
    clip_gradients(model, optimizer, OptimConfig(clip_norm=1e9), epoch=1)
    assert prototypes.grad is not None
    clip_gradients(model, optimizer, OptimConfig(clip_norm=1e9), epoch=0)
    assert prototypes.grad is None and model.image_head.fc.weight.grad is not None


def test_what_cannot_be_aligned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set model.context_head=true, or selfalign.context=0"):
        host_recipe(tmp_path / "a", "vse_infty", pairs=12, context_head=False).build_model()
    with pytest.raises(InputError, match=r"one vector an image: set model.image.output=grid"):
        check_model(tiny_model_object(context_head=True), SelfAlignConfig())
    broken = host_recipe(tmp_path / "c", "vse_infty", pairs=12, context_head=False)
    broken.matching.config = replace(broken.matching.config, loss=LossConfig())
    with pytest.raises(InputError, match="whole sentences"):
        SelfAlignRecipe(
            SelfAlignRecipeConfig(matching=broken.matching.config), broken.matching.tokenizer, broken.matching.data
        )


@pytest.mark.slow
def test_workers_together_are_one(tmp_path: Path) -> None:
    """Two processes, each with half of the rows, have the losses and gradients of one, on every host."""
    found = run_workers(2, first_steps, tmp_path, tmp_path)
    for place, host in enumerate(HOSTS):
        loss, parts, gradients = first_step(tmp_path, host)
        assert len(gradients) > 10 and float(gradients["training_only.prototypes.weight"].norm()) > 1e-4
        for worker in (found[0][place], found[1][place]):
            assert worker[0] == pytest.approx(loss, rel=1e-4)
            assert worker[1] == pytest.approx(parts, rel=1e-4, abs=1e-6)
            assert worker[2].keys() == gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(worker[2][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@EACH_HOST
def test_64_pairs_are_learnt_by_heart(tmp_path: Path, host: str) -> None:
    """Host and SelfAlign together, from scratch, in less than two minutes of one core."""
    torch.manual_seed(0)
    recipe, indices, steps = host_recipe(tmp_path, host), np.arange(64), 480
    model = recipe.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    for step in range(steps):
        optimizer.zero_grad()
        whole_step(recipe, model, indices, epoch=step // 20, seed=step)
        nn.utils.clip_grad_norm_(learning(model), 2.0)
        optimizer.step()
        schedule.step()
    model.eval()
    found = recipe.evaluate(model)
    assert found["i2t_recall_at_1"] == found["t2i_recall_at_1"] == 100.0
