"""Downstream tasks: batches and targets, losses of several workers, figures, starts, and learning by heart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mvptr_data
import numpy as np
import pytest
import torch
from gloo_workers import run_workers
from mvptr_data import ANSWERS, learn, recipe_of, train_config, with_dropout

from alignment.mvptr.checkpoints import load
from alignment.mvptr.heads import HeadConfig, VqaFrom
from alignment.mvptr.pair_inputs import TagConfig
from alignment.mvptr.recipe_start import read_model_answers
from alignment.mvptr.task_recipe import MvptrTaskRecipe
from alignment.mvptr.tasks import refexp
from alignment.mvptr.tasks.outcomes import picked_box, task_figures
from alignment.mvptr.tasks.predicting import task_scores
from alignment.mvptr.tasks.refexp import WeakConfig
from alignment.mvptr.tasks.targets import targets_of
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

TASKS = ("vqa", "snli_ve", "refexp")


def made(folder: Path, task: str, count: int = 8, init_from: str = "", **changes: Any) -> MvptrTaskRecipe:
    found = recipe_of(folder, train_config(folder, task, count, **changes), init_from)
    assert isinstance(found, MvptrTaskRecipe)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_a_function_of_sample_epoch_and_seed_row_by_row(tmp_path: Path, task: str) -> None:
    more = {"mask_training": 0.4} if task == "snli_ve" else {}
    recipe, rows, key = made(tmp_path, task, **more), np.array([5, 0, 3]), SampleKey(1, 2)
    whole = recipe.batch(rows, key)
    for place in range(3):
        alone = recipe.batch(rows[place : place + 1], key)
        assert all(torch.equal(alone[name][0], whole[name][place]) for name in whole)


def test_targets_are_those_of_each_task(tmp_path: Path) -> None:
    questions = made(tmp_path / "vqa", "vqa")
    first = questions.train.samples.slice(0, 1).to_pylist()[0]
    targets = questions.batch(np.arange(8), SampleKey(0, 0))["targets"]
    assert targets.shape == (8, len(ANSWERS))
    assert targets[0, first["labels"]].tolist() == pytest.approx([1.0, 0.3])
    assert targets.sum().item() == pytest.approx(8 * 1.3)
    sentences = made(tmp_path / "ve", "snli_ve")
    assert sentences.batch(np.arange(8), SampleKey(0, 0))["targets"].tolist() == [
        row[0] for row in sentences.train.samples.column("labels").to_pylist()
    ]
    expressions = made(tmp_path / "re", "refexp")
    overlaps = expressions.batch(np.arange(8), SampleKey(0, 0))["targets"]
    np.testing.assert_allclose(overlaps.max(1).values, 1.0, atol=1e-3)


def test_tags_beside_the_text_stand_behind_it(tmp_path: Path) -> None:
    plain = made(tmp_path / "a", "vqa").train.batch([3])
    recipe = made(tmp_path / "b", "vqa", tags=TagConfig(beside_text="all"))
    found, used = recipe.train.batch([3]), int(plain.attention_mask_a[0].sum())
    tags = int(plain.token_type_ids_b[0].sum()) - 2
    kept = min(tags, recipe.start.config.lengths.text_stream - used)
    assert torch.equal(found.input_ids_a[0, :used], plain.input_ids_a[0, :used])
    assert torch.equal(found.input_ids_a[0, used : used + kept], plain.input_ids_b[0, 1 : 1 + kept])
    assert found.token_type_ids_a[0].tolist() == [0] * used + [1] * kept + [0] * (16 - used - kept)
    assert int(found.attention_mask_a[0].sum()) == used + kept


def test_training_texts_are_masked_and_validation_is_not(tmp_path: Path) -> None:
    recipe = made(tmp_path, "snli_ve", mask_training=0.5)
    mask = recipe.start.tokenizer.mask_token_id
    plain, rows = recipe.train.batch(np.arange(8)), recipe.batch(np.arange(8), SampleKey(0, 0))
    changed = rows["input_ids_a"] != plain.input_ids_a
    assert changed.any() and (rows["input_ids_a"][changed] == mask).all()
    assert not changed[:, 0].any() and not changed[plain.attention_mask_a == 0].any()
    ends = plain.attention_mask_a.sum(1) - 1
    assert not changed[torch.arange(8), ends].any()


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    given_ = [(str(tmp_path / task), with_dropout(train_config(tmp_path / task, task))) for task in TASKS]
    for choice in ("other_image", "hard"):  # the same without boxes, where pairs of other rows are shared out
        weak = {"supervision": "images", "weak": WeakConfig(negatives=choice)}
        given_.append((str(tmp_path / choice), with_dropout(train_config(tmp_path / choice, "refexp", **weak))))
    alone = mvptr_data.worker_steps(given_, 0, 1)
    for worker in run_workers(2, mvptr_data.worker_steps, given_, tmp_path):
        for found, expected in zip(worker, alone, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4) and expected["loss"] > 0
            assert found["gradients"].keys() == expected["gradients"].keys()
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "changes", "lr"),
    [
        ("vqa", {}, 3e-3),
        ("vqa", {"head": HeadConfig(vqa_from="pooled")}, 3e-3),
        ("vqa", {"head": HeadConfig(vqa_from="pooled", classifier="mlp"), "answer_loss": "kl"}, 3e-3),
        ("vqa", {"head": HeadConfig(vqa_from="pooled_and_sides")}, 3e-3),
        ("vqa", {"head": HeadConfig(vqa_from="pooled_and_sides", classifier="mlp")}, 3e-3),
        ("vqa", {"answer_loss": "kl", "tags": TagConfig(beside_text="all")}, 3e-3),
        ("snli_ve", {}, 3e-3),
        ("refexp", {}, 3e-3),
        ("refexp", {"head": HeadConfig(region_score="dot", layer=0)}, 3e-3),
        ("refexp", {"head": HeadConfig(region_score="linear", classifier="mlp")}, 3e-3),
    ],
)
def test_each_head_learns_64_examples_of_its_own_format_by_heart(
    tmp_path: Path, task: str, changes: dict[str, Any], lr: float
) -> None:
    recipe = made(tmp_path, task, 64, **changes)
    before = recipe.evaluate(recipe.build_model().eval())["accuracy"]
    accuracy = 0.0
    for steps in (150, 450):
        model, _ = learn(recipe, steps, lr)
        accuracy = recipe.evaluate(model.eval())["accuracy"]
        if accuracy == 100.0:
            break
    assert accuracy == 100.0 > before


def test_figures_are_told_apart_by_kind_and_bounded_by_the_regions(tmp_path: Path) -> None:
    questions = made(tmp_path / "vqa", "vqa", 20)
    figures = questions.evaluate(questions.build_model().eval())
    assert set(figures) == {"accuracy", "accuracy_yes/no", "accuracy_number", "accuracy_other"}
    sentences = made(tmp_path / "ve", "snli_ve", 20)
    found = sentences.evaluate(sentences.build_model().eval())
    assert set(found) == {"accuracy", "accuracy_contradiction", "accuracy_neutral", "accuracy_entailment"}
    expressions = made(tmp_path / "re", "refexp", 20)
    found = expressions.evaluate(expressions.build_model().eval())
    assert found["accuracy"] <= found["recall_bound"] == 100.0


def test_given_detections_that_are_the_regions_give_what_the_regions_give(tmp_path: Path) -> None:
    recipe = made(tmp_path, "refexp", 12)
    model = recipe.build_model().eval()
    names = recipe.valid.samples.column("image_id").to_pylist()
    detections = {name: mvptr_data.regions_of(row, 4).boxes for row, name in enumerate(names)}
    scores = task_scores(model, recipe.valid, np.arange(12))
    found = task_figures(recipe.start.head, recipe.valid, scores, detections)
    assert found["accuracy_detections_best_region"] == found["accuracy"]
    for index in range(12):
        own = picked_box(recipe.valid, index, scores[index])
        given_ = picked_box(recipe.valid, index, scores[index], detections)
        np.testing.assert_array_equal(own.box, given_.box)
        labels = targets_of(recipe.start.head, recipe.valid, np.array([index]))[0].numpy()
        meant = np.array([recipe.valid.samples.column("box")[index].as_py()], np.float32)
        assert refexp.overlaps(own.box[None], meant)[0, 0] == refexp.chosen_overlap(scores[index], labels)
    with pytest.raises(InputError, match="image '1000000000' has no given detections"):
        task_figures(recipe.start.head, recipe.valid, scores, {})


def test_regions_without_boxes_cannot_be_referred_to(tmp_path: Path) -> None:
    from alignment.mvptr.tasks.targets import boxes_of

    image = mvptr_data.regions_of(0)._replace(boxes=np.zeros((0, 4), np.float32))
    with pytest.raises(InputError, match="its regions have no boxes"):
        boxes_of(image)


def test_a_vqa_head_begins_with_the_word_head_and_keeps_its_answers(tmp_path: Path) -> None:
    first = recipe_of(tmp_path / "first", train_config(tmp_path / "first", "pretrain"))
    torch.manual_seed(3)
    pretrained = first.build_model()
    first.save_model(pretrained, str(tmp_path / "start"))
    recipe = made(tmp_path / "vqa", "vqa", init_from=str(tmp_path / "start"))
    model = recipe.build_model()
    for name, value in pretrained.words.transform.state_dict().items():
        assert torch.equal(model.transform.state_dict()[name], value)
    yes = recipe.start.tokenizer.convert_tokens_to_ids("red")
    assert torch.equal(model.answers.weight[ANSWERS.index("red")], pretrained.mvptr.word_rows[yes])
    recipe.save_model(model, str(tmp_path / "model"))
    assert read_model_answers(str(tmp_path / "model")) == ANSWERS
    with pytest.raises(InputError, match=r"has no answers.json"):
        read_model_answers(str(tmp_path / "start"))


@pytest.mark.parametrize("vqa_from", ["pooled", "pooled_and_sides"])
def test_other_heads_of_vqa_begin_with_the_encoders_alone_and_are_stored(tmp_path: Path, vqa_from: VqaFrom) -> None:
    first = recipe_of(tmp_path / "first", train_config(tmp_path / "first", "pretrain"))
    pretrained = first.build_model()
    first.save_model(pretrained, str(tmp_path / "start"))
    head = HeadConfig(vqa_from=vqa_from, classifier="mlp")
    recipe = made(tmp_path / "vqa", "vqa", init_from=str(tmp_path / "start"), head=head)
    model = recipe.build_model()
    assert torch.equal(model.mvptr.text_projection, pretrained.mvptr.text_projection)
    recipe.save_model(model, str(tmp_path / "model"))
    again = load(str(tmp_path / "model")).model
    assert again.head == dataclasses.replace(head, task="vqa", outputs=len(ANSWERS)) and type(again) is type(model)
    inputs = recipe.train.batch([0, 3])
    with torch.no_grad():
        torch.testing.assert_close(again(inputs), model.eval()(inputs))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config = train_config(tmp_path, "vqa")
    config.require_data()
    for change, message in (
        ({"answers": ""}, "needs mvptr.answers"),
        ({"regions": ""}, "give mvptr.regions"),
        ({"train": mvptr_data.SplitConfig()}, "needs mvptr.train.data"),
        ({"task": "refexp"}, "needs mvptr.train.split"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, **change).require_data()
