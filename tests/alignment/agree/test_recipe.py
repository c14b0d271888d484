"""The recipe of AGREE: what is in its batches, that it learns, and that workers together are as one."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from agree_data import Found, first_steps, small_captions, small_recipe, write_data
from gloo_workers import run_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_images, tiny_config, tiny_model_object
from small_presets import save_clip

from alignment.agree.losses import LOSS_NAMES, AgreeLossConfig
from alignment.agree.recipe import AgreeData, AgreeRecipe, require_data
from alignment.agree.slots import EntityConfig
from xmatch.errors import InputError
from xmatch.models.importers.clip import import_clip
from xmatch.training.recipe import SampleKey
from xmatch.training.step import StepConfig, Stepper

KEY = SampleKey(9, 1)
LAW = settings(deadline=None, max_examples=10)
SOME = st.lists(st.integers(0, 23), min_size=1, max_size=5)
CASES = [(12, StepConfig()), (7, StepConfig()), (12, StepConfig(cached_rows=2))]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, image_folder: str) -> AgreeRecipe:
    """All losses, random crops."""
    made = small_recipe(tmp_path_factory.mktemp("agree"), image_folder)
    made.build_model()
    return made


def words(recipe: AgreeRecipe, ids: torch.Tensor) -> str:
    return recipe.matching.tokenizer.decode(ids, skip_special_tokens=False).replace(" [PAD]", "").replace("[PAD]", "")


def test_a_row_does_not_depend_on_who_else_is_in_the_batch(recipe: AgreeRecipe) -> None:
    @LAW
    @given(indices=SOME, others=SOME)
    def law(indices: list[int], others: list[int]) -> None:
        alone, together = (recipe.batch(np.array(rows), KEY) for rows in (indices, [*others, *indices]))
        for name, rows in alone.items():
            same = together[name][len(others) :]
            if name.endswith(("_ids", "_mask", "text")):  # beyond the own width there is only padding
                assert not same[..., rows.shape[-1] :].bool().any(), name
                same = same[..., : rows.shape[-1]]
            assert torch.equal(rows, same), name

    law()


def test_slots_hold_the_prompts_and_masked_captions_of_the_first_entities(recipe: AgreeRecipe) -> None:
    batch = recipe.batch(np.array([0, 4]), KEY)  # "it is ." and "The cat sat on the mat ."
    assert batch["slot_valid"].tolist() == [[False] * 5, [True] * 5]
    entities = ["The cat sat on the mat", "The cat", "the mat", "cat", "mat"]
    for entity, ids in zip(entities, batch["prompts_ids"][1], strict=True):
        own = recipe.matching.tokenizer(f"a photo containing {entity}")["input_ids"]
        assert ids.tolist() == own + [0] * (len(ids) - len(own))
    masked = [words(recipe, ids) for ids in batch["masked_ids"][1]]
    assert masked[:2] == ["[CLS] [MASK]. [SEP]", "[CLS] [MASK] sat on the mat. [SEP]"]
    assert masked[3] == "[CLS] the [MASK] sat on the mat. [SEP]"
    again = recipe.batch(np.array([8]), KEY)
    assert torch.equal(again["slot_keys"][0], batch["slot_keys"][1])
    assert len(set(batch["slot_keys"][1].tolist())) == 5


def test_epochs_and_seeds_draw_anew_and_equal_keys_alike(recipe: AgreeRecipe) -> None:
    everything = np.arange(24)
    first = recipe.batch(everything, KEY)
    again = recipe.batch(everything, KEY)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for key in (KEY._replace(epoch=2), KEY._replace(seed=1)):
        other = recipe.batch(everything, key)
        assert (first["object_rows"] != other["object_rows"]).any()
        assert (first["grounded_pixels"] != other["grounded_pixels"]).any()
        assert torch.equal(first["object_valid"], other["object_valid"])
        assert torch.equal(first["slot_keys"], other["slot_keys"])


@pytest.mark.parametrize(
    ("painted", "whole", "valid"),
    [("grounded_pixels", "image", "grounded_valid"), ("object_painted", "object_pixels", "object_valid")],
)
def test_painted_images_are_cropped_like_the_whole_ones(
    recipe: AgreeRecipe, painted: str, whole: str, valid: str
) -> None:
    """A pixel is as it was, or has the mean colour, which is zero within half a step, or is at the border of a box."""
    seen = 0
    for epoch in range(8):
        batch = recipe.batch(np.arange(24), SampleKey(1, epoch))
        for there, one, other in zip(batch[valid].tolist(), batch[painted], batch[whole], strict=True):
            same, flat = (one == other).all(0), one.abs().amax(0) < 0.01
            assert there or not one.any()
            seen += there and bool(same.any()) and bool((flat & ~same).any())
            assert not there or (~same & ~flat).float().mean() < 0.35
    assert seen >= 8


def test_only_what_has_boxes_is_painted(recipe: AgreeRecipe) -> None:
    captions, batch = small_captions(""), recipe.batch(np.arange(24), KEY)
    for row, (caption, image) in enumerate(zip(captions.captions, captions.caption_image, strict=True)):
        letter = captions.image_ids[image][0]
        has_cat = "cat" in caption.lower() and letter in "abcdefg"
        assert bool(batch["grounded_valid"][row]) == has_cat, caption
        shows = letter in "abgh" or any(word in caption.lower() for word in ("dog", "mat"))
        assert bool(batch["object_valid"][row]) == shows, caption


def test_an_object_is_taken_from_another_image(tmp_path: Path) -> None:
    """An image of Visual Genome that is trained on is never its own pair."""
    images = make_images(tmp_path / "photos")
    made = small_recipe(tmp_path / "run", images)
    made.build_model()
    assert made.objects is not None
    choices = made.objects.choices
    drawn = [choices.draw(12, np.random.default_rng(seed)) for seed in range(40)]
    assert {Path(found.uri).name for found in drawn if found} == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    in_a = next(found for found in drawn if found and found.uri.endswith("/a.jpg"))
    assert [box.y1 for box in in_a.boxes] == pytest.approx([0.2, 0.9])
    choices.own = choices.own._replace(image_ids=[name[0] for name in choices.own.image_ids])
    for row, seed in product(range(24), range(10)):
        found = choices.draw(row, np.random.default_rng((seed, row)))
        assert found is None or not found.uri.endswith(f"/{choices.own.image_id(row)}.jpg")
        assert found is None or {box.phrase for box in found.boxes} == {found.name}


def test_every_loss_is_there_and_all_of_them_learn(recipe: AgreeRecipe) -> None:
    torch.manual_seed(0)
    model = recipe.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    history = []
    for _ in range(12):
        optimizer.zero_grad()
        outcome = whole_step(recipe, model, np.arange(24))
        assert set(outcome.parts) == set(LOSS_NAMES)
        total = sum(AgreeLossConfig().weight(name) * float(value) for name, value in outcome.parts.items())
        assert float(outcome.loss) == pytest.approx(total, rel=1e-5)
        history.append({name: float(value) for name, value in outcome.parts.items()} | {"total": float(outcome.loss)})
        optimizer.step()
    assert history[-1]["total"] < 0.9 * history[0]["total"]
    assert all(max(row[name] for row in history) > 0 for name in LOSS_NAMES)


def whole_step(recipe: AgreeRecipe, model: torch.nn.Module, indices: np.ndarray):
    samples = torch.from_numpy(indices)
    batch, valid = recipe.batch(indices, KEY), torch.ones(len(indices), dtype=torch.bool)
    return Stepper(recipe, model, StepConfig()).backward(batch, valid, samples=samples, epoch=0, seed=3)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_each_loss_alone_reaches_its_towers(name: str, tmp_path: Path, image_folder: str) -> None:
    made = small_recipe(tmp_path, image_folder, losses=AgreeLossConfig(use=(name,)))
    model = made.build_model()
    outcome = whole_step(made, model, np.arange(24))
    assert set(outcome.parts) == {name} and float(outcome.loss) > 0
    reached = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"text_tower", "text_head", "image_head"} <= reached
    assert ("logit_scale" in reached) == (name in ("contrastive", "prompt", "visual"))
    names = set(made.batch(np.arange(2), KEY))
    assert any(key.startswith("object") for key in names) == name.startswith("visual")
    assert any(key.startswith("prompts") for key in names) == (name == "prompt")
    assert ("object_painted" in names) == (name == "visual_mask")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_saved_clip_is_fine_tuned_as_it_is(kind: str, tmp_path: Path, image_folder: str) -> None:
    import_clip(save_clip(tmp_path / "theirs", kind)).save_pretrained(tmp_path / "start")
    made = small_recipe(tmp_path / "run", image_folder, start=str(tmp_path / "start"))
    model = made.build_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "logit_bias")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(float(whole_step(made, model, np.arange(12)).loss))
        optimizer.step()
    assert losses[-1] < losses[0]
    moved = {name.split(".")[0] for name, p in model.named_parameters() if (p != before[name]).any()}
    assert {"image_tower", "text_tower", "logit_scale"} <= moved


@cache
def together(folder: Path, images: str) -> tuple[list[list[Found]], list[Found]]:
    """All cases by two workers, started once, and by one."""
    return run_workers(2, first_steps, (folder, images, CASES), folder), first_steps((folder, images, CASES), 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(CASES)))
def test_two_workers_have_the_loss_and_gradients_of_one(place: int, tmp_path_factory, image_folder: str) -> None:
    """With random crops, and dropout in tower, attention and heads: all of them drawn by sample and slot."""
    folder = tmp_path_factory.getbasetemp() / "together"
    folder.mkdir(exist_ok=True)
    workers, alone = together(folder, image_folder)
    loss, parts, gradients = alone[place]
    assert set(parts) == set(LOSS_NAMES)
    for worker in workers:
        assert worker[place][0] == pytest.approx(loss, rel=1e-5)
        assert worker[place][1] == pytest.approx(parts, rel=1e-4, abs=1e-6)
        assert worker[place][2].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(worker[place][2][name], gradient, atol=5e-6, rtol=1e-4)


@pytest.mark.slow
def test_cached_steps_have_the_loss_and_gradients_of_whole_ones(tmp_path_factory, image_folder: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "together"
    folder.mkdir(exist_ok=True)
    whole, _, cached = together(folder, image_folder)[1]
    assert cached[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(cached[2][name], gradient, atol=5e-6, rtol=1e-4)


def test_a_model_with_views_is_refused(tmp_path: Path, image_folder: str) -> None:
    image = dataclasses.replace(tiny_config().image, output="grid")
    tiny_model_object(image=image, image_pooling="views", views=2).save_pretrained(str(tmp_path / "model"))
    with pytest.raises(InputError, match="one vector an image"):
        small_recipe(tmp_path / "data", image_folder, start=str(tmp_path / "model")).build_model()


def test_squares_stand_in_where_the_original_means_them_to(tmp_path: Path, image_folder: str) -> None:
    made = small_recipe(tmp_path, image_folder, entity=EntityConfig(fallback="square"), crops=False)
    made.build_model()
    batch = made.batch(np.arange(24), KEY)
    assert batch["object_valid"].all() and batch["grounded_valid"].all()
    bare = 0  # "it is .", image a: no entity
    changed = (batch["grounded_pixels"][bare] != batch["image"][bare]).any(0)
    assert 0 < int(changed.sum()) <= 33 * 33
    row = 10  # "It is .", image f: no entity and no object box
    assert torch.equal(batch["object_pixels"][row], batch["image"][row])
    assert words(made, batch["object_ids"][row]) == "[CLS] it is. [SEP]"
    assert (batch["object_painted"][row] != batch["image"][row]).any()


def test_without_crops_images_are_seen_as_in_an_evaluation(tmp_path: Path, image_folder: str) -> None:
    made = small_recipe(tmp_path, image_folder, crops=False)
    made.build_model()
    first, other = (made.batch(np.arange(4), SampleKey(1, epoch))["image"] for epoch in (0, 1))
    assert torch.equal(first, other)


def test_empty_slots_read_as_the_empty_text_in_the_originals_way(tmp_path: Path, image_folder: str) -> None:
    made = small_recipe(tmp_path, image_folder, losses=AgreeLossConfig(legacy_slots=True))
    made.build_model()
    batch = made.batch(np.arange(3), KEY)
    assert batch["slot_valid"].all()
    assert {words(made, ids) for ids in batch["prompts_ids"][0]} == {"[CLS] [SEP]"}


@pytest.mark.parametrize(
    ("use", "given_", "has_pixels", "said"),
    [
        (("prompt",), {}, True, "'prompt' is in use, but entities is empty"),
        (("grounded_mask",), {"entities": "e"}, True, "'grounded_mask' is in use, but boxes is empty"),
        (("visual",), {"boxes": "b"}, True, "'visual' is in use, but object_photos is empty"),
        (("contrastive", "visual_mask"), {"boxes": "b", "object_photos": "p"}, False, "'visual_mask' paints images"),
        (("grounded_mask",), {"boxes": "b", "entities": "e"}, False, "'grounded_mask' paints images"),
    ],
)
def test_what_a_loss_needs_is_asked_for(use: tuple, given_: dict, has_pixels: bool, said: str) -> None:
    with pytest.raises(InputError, match=said):
        require_data(AgreeLossConfig(use=use), EntityConfig(), AgreeData(**given_), has_pixels=has_pixels)


def test_photographs_of_objects_must_be_there(tmp_path: Path, image_folder: str) -> None:
    made = small_recipe(tmp_path, image_folder, losses=AgreeLossConfig(use=("visual",)))
    made.data = dataclasses.replace(write_data(tmp_path, image_folder), object_photos=str(tmp_path))
    with pytest.raises(
        InputError, match="none of the 5 images whose objects boxes names; expected files such as a.jpg"
    ):
        made.build_model()
    made.data = dataclasses.replace(made.data, object_photos=image_folder)
    made.build_model()
    assert made.objects is not None
    assert (made.objects.choices.missing, made.objects.choices.first_missing) == (1, ("z",))
