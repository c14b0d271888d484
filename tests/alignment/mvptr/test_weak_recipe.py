"""Referring expressions without boxes: what is compared, that boxes change nothing, and that regions are learnt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import mvptr_data
import numpy as np
import pytest
import torch
from mvptr_data import LENGTHS, SIDE, SMALL, WIDTH, image_name, learn, recipe_of, train_config

from alignment.mvptr.heads import HeadConfig, RegionScore
from alignment.mvptr.model import Inputs
from alignment.mvptr.recipe_config import MvptrTrainConfig, SplitConfig
from alignment.mvptr.regions.table import write_regions
from alignment.mvptr.tasks.refexp import WeakConfig
from alignment.mvptr.weak_recipe import MvptrWeakRecipe, negatives_of
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

KINDS = ("cat", "dog", "world", "mat", "big", "red", "run", "love")
"""What a region may show; an expression is its name."""
REGION_SCORES: tuple[RegionScore, ...] = get_args(RegionScore)


def made(folder: Path, count: int = 8, **changes: Any) -> MvptrWeakRecipe:
    found = recipe_of(folder, train_config(folder, "refexp", count, supervision="images", **changes))
    assert isinstance(found, MvptrWeakRecipe)
    return found


def embedded(recipe: MvptrWeakRecipe) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model whose states are far from each other, and what it makes of all samples."""
    torch.manual_seed(1)
    model = recipe.build_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else None
        return model, recipe.embed(model, recipe.batch(np.arange(recipe.num_samples), SampleKey(0, 0)))


def test_a_batch_is_a_function_of_sample_epoch_and_seed_row_by_row(tmp_path: Path) -> None:
    recipe, rows, key = made(tmp_path), np.array([5, 0, 3]), SampleKey(1, 2)
    whole = recipe.batch(rows, key)
    for place in range(3):
        alone = recipe.batch(rows[place : place + 1], key)
        assert all(torch.equal(alone[name][0], whole[name][place]) for name in whole)
    assert not torch.equal(recipe.batch(rows, SampleKey(1, 3))["drawn_other"], whole["drawn_other"])
    assert "targets" not in whole


@pytest.mark.parametrize("score", REGION_SCORES)
@pytest.mark.parametrize("negatives", ["other_image", "hard"])
def test_the_loss_is_the_hinge_between_the_best_regions(tmp_path: Path, score: RegionScore, negatives: str) -> None:
    weak = WeakConfig(margin=0.3, negatives=negatives)
    recipe = made(tmp_path, weak=weak, head=HeadConfig(region_score=score))
    model, rows = embedded(recipe)
    found = negatives_of(rows, weak)
    assert sorted(found.own.tolist()) == list(range(8)) and found.exists.all()
    inputs, terms = recipe.train.batch(np.arange(8)), []
    image_side = ("input_ids_b", "attention_mask_b", "token_type_ids_b", "img_feats")
    with torch.no_grad():
        for text, image, own in zip(found.text.tolist(), found.image.tolist(), found.own.tolist(), strict=True):
            assert own in (text, image) and text != image
            texts = {name: getattr(inputs, name)[[own, text]] for name in Inputs._fields if name.endswith("_a")}
            images = {name: getattr(inputs, name)[[own, image]] for name in image_side}
            true, other = model(Inputs(**texts, **images)).amax(1).tolist()  # four regions each, so no padding
            terms.append(max(0.0, 0.3 + other - true))
        loss = float(recipe.loss(model, rows, 0))
    assert loss == pytest.approx(np.mean(terms), rel=1e-4) and loss > 0


def test_hard_pairs_keep_a_text_or_an_image_by_halves(tmp_path: Path) -> None:
    _, rows = embedded(made(tmp_path))
    found = negatives_of(rows, WeakConfig(negatives="hard"))
    assert int((found.text == found.own).sum()) == 4 == int((found.image == found.own).sum())
    drawn = negatives_of(rows, WeakConfig(negatives="other_image"))
    assert torch.equal(drawn.text, torch.arange(8))
    redrawn = rows | {"drawn_other": (rows["drawn_other"] + 0.5) % 1.0}
    assert not torch.equal(drawn.image, negatives_of(redrawn, WeakConfig()).image)


@pytest.mark.parametrize("negatives", ["other_image", "hard"])
def test_expressions_of_one_image_are_no_negatives_of_each_other(tmp_path: Path, negatives: str) -> None:
    recipe = made(tmp_path, weak=WeakConfig(negatives=negatives))
    model, rows = embedded(recipe)
    for image_row in ([0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]):
        numbers = torch.tensor(image_row)
        found = negatives_of(rows | {"image_row": numbers}, recipe.config.weak)
        assert found.exists.all()
        assert (numbers[found.text] != numbers[found.image]).all()
    alone = rows | {"image_row": torch.zeros(8, dtype=torch.int64)}
    assert not negatives_of(alone, recipe.config.weak).exists.any()
    with torch.no_grad():
        assert float(recipe.loss(model, alone, 0)) == 0.0


def test_padding_is_never_the_best_region(tmp_path: Path) -> None:
    wide, narrow = dataclasses.replace(LENGTHS, regions=9), LENGTHS
    found = [embedded(made(tmp_path / str(n.regions), lengths=n))[1]["best"] for n in (wide, narrow)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def rewritten(path: Path, change: Any) -> None:
    """Change the boxes of the training split."""
    content = json.loads(path.read_text())
    content["train"] = [change(row, record) for row, record in enumerate(content["train"])]
    path.write_text(json.dumps(content))


def without_box(row: int, record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "bbox"}


def other_box(row: int, record: dict[str, Any]) -> dict[str, Any]:
    return record | {"bbox": [row, row, 10, 10]}


def test_boxes_of_the_training_data_change_no_weight(tmp_path: Path) -> None:
    found = []
    for name, change in (("as_is", lambda row, record: record), ("other", other_box), ("none", without_box)):
        config = train_config(tmp_path / name, "refexp", 8, supervision="images")
        rewritten(tmp_path / name / "ve_splits.json", change)
        recipe = recipe_of(tmp_path / name, config)
        assert recipe.train.samples.column("box").null_count == 8
        assert recipe.valid.samples.column("box").null_count == 0
        found.append(learn(recipe, 3)[0].state_dict())
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_learning_from_boxes_still_needs_them(tmp_path: Path) -> None:
    config = train_config(tmp_path, "refexp", 8)
    rewritten(tmp_path / "ve_splits.json", without_box)
    with pytest.raises(InputError, match=r"train row 0: expected 'bbox' to be list"):
        recipe_of(tmp_path, config)


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mvptr.train has one alone"):
        made(tmp_path, 1)
    with pytest.raises(InputError, match="supervision is boxes or images"):
        MvptrTrainConfig(supervision="texts")
    for wrong in ({"margin": 0.0}, {"negatives": "easy"}):
        with pytest.raises(InputError, match="weak: margin is above 0"):
            WeakConfig(**wrong)


def write_named_regions(folder: Path, train: int, valid: int) -> None:
    """Images of two regions of different kinds, and for each the name of one of these; boxes of validation alone."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, images, records = np.random.default_rng(0), [], []
    looks = 2 * draw.normal(size=(len(KINDS), WIDTH))
    boxes = np.array([[0, 0, SIDE / 2, SIDE], [SIDE / 2, 0, SIDE, SIDE]], np.float32)
    for row in range(train + valid):
        kinds, meant = draw.permutation(len(KINDS))[:2], int(draw.integers(2))
        features = (looks[kinds] + 0.2 * draw.normal(size=(2, WIDTH))).astype(np.float32)
        images.append(ImageRegions(image_name(row), boxes, features, SIDE, SIDE, ()))
        record = {"id": row, "sentence": KINDS[kinds[meant]], "image_id": int(image_name(row))}
        box = [float(boxes[meant, 0]), 0, SIDE / 2, SIDE]
        records.append(record if row < train else record | {"bbox": box})
    write_regions(str(folder / "regions.arrow"), images)
    (folder / "ve_splits.json").write_text(json.dumps({"train": records[:train], "val": records[train:]}))


@pytest.mark.slow
@pytest.mark.parametrize("score", REGION_SCORES)
def test_regions_are_learnt_from_images_alone(tmp_path: Path, score: RegionScore) -> None:
    """Expressions of 256 images in, boxes of 100 other ones out; chance is one half."""
    write_named_regions(tmp_path, 256, 100)
    data = str(tmp_path / "ve_splits.json")
    config = MvptrTrainConfig(
        task="refexp",
        supervision="images",
        train=SplitConfig(data=data, split="train"),
        valid=SplitConfig(data=data, split="val"),
        regions=str(tmp_path / "regions.arrow"),
        tokenizer=mvptr_data.save_tokenizer(tmp_path),
        lengths=LENGTHS,
        model=SMALL,
        dropout=0.0,
        head=HeadConfig(region_score=score),
    )
    recipe = recipe_of(tmp_path, config)
    torch.manual_seed(0)
    model, order = recipe.build_model(), np.random.default_rng(0)
    before = recipe.evaluate(model.eval())["accuracy"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(160):
        batch = recipe.batch(order.permutation(256)[:64], SampleKey(0, step))
        optimizer.zero_grad()
        recipe.loss(model, recipe.embed(model, batch), step).backward()
        optimizer.step()
    accuracy = recipe.evaluate(model.eval())["accuracy"]
    assert before < 65 and accuracy >= 80
