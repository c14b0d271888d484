"""Batches of the dual encoder's recipe: what a sample is does not depend on who else is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CAPTIONS, tiny_config, tiny_vocabulary

from xmatch.data.augment import SizeAugmentConfig
from xmatch.data.captions import CaptionSet
from xmatch.data.feature_sets import FeatureSets
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.objectives import LossConfig
from xmatch.training.recipe import SampleKey
from xmatch.training.sample_inputs import FeatureInputs
from xmatch.training.samples import write_samples
from xmatch.training.step import StepConfig, Stepper

KEY = SampleKey(9, 1)
AUGMENT = SizeAugmentConfig(regions=0.4, cells=0.4, words=0.4)
LAW = settings(deadline=None, max_examples=25)
SOME = st.lists(st.integers(0, 23), min_size=1, max_size=6)
WIDTHS = (3, 1, 5, 2, 5, 4)
"""Regions of each of the six images."""


def caption_set(image_folder: str) -> CaptionSet:
    names = [f"{letter}.jpg" for letter in "abcdefghijkl"]
    return CaptionSet(
        caption_ids=[str(i) for i in range(24)],
        captions=[f"{CAPTIONS[i % 4]} {CAPTIONS[i // 4 % 4]}"[: 20 + i] for i in range(24)],
        caption_image=[i // 2 for i in range(24)],
        image_ids=names,
        image_paths=[f"{image_folder}/{name}" for name in names],
    )


def recipe_in(folder: Path, image_folder: str, **changes) -> DualEncoderRecipe:
    for split in ("train", "valid"):
        write_samples(caption_set(image_folder), str(folder / split))
    settings_ = {"model": tiny_config(), "augment": AUGMENT, "loss": LossConfig(name="info_nce")} | changes
    data = RecipeData(train=str(folder / "train"), valid=str(folder / "valid"))
    return DualEncoderRecipe(RecipeConfig(**settings_), tiny_vocabulary(), data)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory, image_folder: str) -> DualEncoderRecipe:
    """A recipe on decoded, cropped photos."""
    recipe = recipe_in(tmp_path_factory.mktemp("pixels"), image_folder)
    recipe.build_model()
    return recipe


@pytest.fixture(scope="module")
def regions(tmp_path_factory, image_folder: str) -> DualEncoderRecipe:
    """A recipe on ready-made regions, of different numbers for each image, and mirrored views."""
    image = ImageTowerConfig(kind="regions", output="grid", width=4)
    config = tiny_config(image=image, image_pooling="mean", image_head=HeadConfig(kind="fc"))
    recipe = recipe_in(tmp_path_factory.mktemp("regions"), image_folder, model=config)
    names = [f"{letter}.jpg" for letter in "abcdefghijkl"]
    views = [*names, *(f"{name}#flip" for name in names)]
    sizes = np.resize(WIDTHS, len(views))
    stops = np.cumsum(sizes)
    rows = np.random.default_rng(0).standard_normal((int(stops[-1]), 4)).astype(np.float32)
    spans = np.stack([np.zeros_like(stops), stops - sizes, stops], axis=1).astype(np.int64)
    sets = FeatureSets([rows], views, spans, "test")
    recipe._inputs = {"train": FeatureInputs(sets, names, True, AUGMENT)}
    return recipe


@pytest.mark.parametrize("kind", ["pixels", "regions"])
def test_a_row_does_not_depend_on_who_else_is_in_the_batch(kind: str, request: pytest.FixtureRequest) -> None:
    recipe = request.getfixturevalue(kind)

    @LAW
    @given(indices=SOME, others=SOME)
    def law(indices: list[int], others: list[int]) -> None:
        alone = recipe.batch(np.array(indices), KEY)
        together = recipe.batch(np.array([*others, *indices]), KEY)
        for name, rows in alone.items():
            same = together[name][len(others) :]
            if rows.ndim > 1:  # beyond the own width there is only padding
                assert not same[:, rows.shape[1] :].bool().any(), name
                same = same[:, : rows.shape[1]]
            assert torch.equal(rows, same), name

    law()


@pytest.mark.parametrize("kind", ["pixels", "regions"])
def test_epochs_and_seeds_draw_anew(kind: str, request: pytest.FixtureRequest) -> None:
    recipe, indices = request.getfixturevalue(kind), np.arange(24)
    first = recipe.batch(indices, KEY)
    for key in (KEY._replace(epoch=2), KEY._replace(seed=1)):
        other = recipe.batch(indices, key)
        assert not torch.equal(first["image_mask"], other["image_mask"]) or kind == "pixels"
        assert first["text"].shape != other["text"].shape or (first["text"] != other["text"]).any()
        assert first["image"].shape != other["image"].shape or (first["image"] != other["image"]).any()
        assert torch.equal(first["image_row"], other["image_row"])


def test_only_real_members_are_dropped_and_one_always_stays(regions: DualEncoderRecipe) -> None:
    dropped, seen = 0, set()
    for epoch in range(40):
        batch = regions.batch(np.arange(0, 24, 2), SampleKey(1, epoch))
        for row, (values, mask) in enumerate(zip(batch["image"], batch["image_mask"], strict=True)):
            real = int(values.abs().sum(-1).bool().sum())
            assert mask[real:].sum() == 0
            assert 1 <= mask.sum() <= real
            dropped += real - int(mask.sum())
            seen.add((row, float(values[0, 0])))
    assert dropped > 100
    assert len(seen) == 24  # both views of each image are drawn


def test_nothing_is_dropped_without_augmentation(tmp_path: Path, image_folder: str, tokenizer) -> None:
    recipe = recipe_in(tmp_path, image_folder, augment=SizeAugmentConfig())
    recipe.build_model()
    batch, captions = recipe.batch(np.arange(24), KEY), caption_set(image_folder).captions
    for ids, mask, caption in zip(batch["text"], batch["text_mask"], captions, strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(caption, truncation=True, max_length=20)["input_ids"]
    assert batch["image_mask"].all()
    assert batch["image_row"].tolist() == [i // 2 for i in range(24)]


@pytest.mark.parametrize("loss", ["paired_hinge", "info_nce"])
@pytest.mark.parametrize("way", ["cached", "checkpointing", "bf16"])
def test_a_dual_encoder_learns_alike_in_every_way(tmp_path: Path, image_folder: str, loss: str, way: str) -> None:
    """Dropout in text tower, attention and heads is on."""
    text = TextTowerConfig(
        name=None, trainable=True, hidden_size=16, num_layers=2, num_heads=2, layers=(1,), dropout=0.3
    )
    found = []
    for changed in (False, True):
        recipe = recipe_in(
            tmp_path / str(changed),
            image_folder,
            model=tiny_config(text=text),
            loss=LossConfig(name=loss),
            gradient_checkpointing=changed and way == "checkpointing",
        )
        torch.manual_seed(0)
        model = recipe.build_model()
        step = StepConfig(
            cached_rows=4 if changed and way == "cached" else 0,
            precision="bf16" if changed and way == "bf16" else "fp32",
        )
        indices = np.arange(10)
        outcome = Stepper(recipe, model, step).backward(
            recipe.batch(indices, KEY),
            torch.ones(10, dtype=torch.bool),
            samples=torch.from_numpy(indices),
            epoch=1,
            seed=3,
        )
        found.append((float(outcome.loss), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss_before, before), (loss_after, after) = found
    slack = 0.1 if way == "bf16" else 2e-6
    assert loss_after == pytest.approx(loss_before, abs=slack)
    assert set(before) == set(after)
    assert any(name.startswith("text_tower") for name in before)
    for name, gradient in before.items():
        assert torch.isfinite(after[name]).all()
        if way != "bf16":
            torch.testing.assert_close(after[name], gradient, atol=slack, rtol=1e-4)


def test_two_halves_of_a_batch_embed_as_the_whole_with_dropout(tmp_path: Path, image_folder: str) -> None:
    """What two workers would embed, although their captions are padded to other lengths."""
    recipe = recipe_in(tmp_path, image_folder, model=tiny_config(pooling="cls"))
    model = recipe.build_model()
    stepper = Stepper(recipe, model, StepConfig())

    def embedded(indices: np.ndarray) -> torch.Tensor:
        with stepper._draws(torch.from_numpy(indices), 4), torch.no_grad():
            return stepper.embed(recipe.batch(indices, KEY))["text"]

    whole = embedded(np.arange(12))
    for rank in (0, 1):
        torch.testing.assert_close(embedded(np.arange(rank, 12, 2)), whole[rank::2], atol=1e-5, rtol=1e-4)
    assert (embedded(np.arange(12, 24)) - whole).abs().max() > 0.01
