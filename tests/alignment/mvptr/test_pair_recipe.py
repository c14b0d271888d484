"""Pre-training and retrieval: batches, masking, losses of several workers, schedules, validation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mvptr_data
import numpy as np
import pytest
import torch
from gloo_workers import run_workers
from mvptr_data import learn, recipe_of, train_config, with_dropout

from alignment.mvptr import checkpoints
from alignment.mvptr.losses_config import LOSS_NAMES, MvptrLossConfig
from alignment.mvptr.masking import MaskingConfig
from alignment.mvptr.pair_recipe import MvptrPairRecipe
from alignment.mvptr.recipe_config import MvptrTrainConfig, SplitConfig
from alignment.mvptr.recipe_data import read_side, start_of
from alignment.mvptr.two_step import PoolConfig
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey
from xmatch.training.step import StepConfig, Stepper

POOLS = PoolConfig(captions_per_image=10, images_per_caption=10)


def made(folder: Path, task: str = "pretrain", count: int = 8, **changes: Any) -> MvptrPairRecipe:
    found = recipe_of(folder, train_config(folder, task, count, **changes))
    assert isinstance(found, MvptrPairRecipe)
    return found


QUESTIONS = MvptrLossConfig(use=LOSS_NAMES)


def question_config(folder: Path, count: int = 6, **changes: Any) -> MvptrTrainConfig:
    split = SplitConfig(**mvptr_data.write_questions(folder, range(count)))
    settings = {"losses": QUESTIONS, "train": split, "valid": split, "min_sentences": 0}
    return train_config(folder, "pretrain", count, **(settings | changes))


def with_questions(folder: Path, **changes: Any) -> MvptrPairRecipe:
    found = recipe_of(folder, question_config(folder, **changes))
    assert isinstance(found, MvptrPairRecipe)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_is_a_function_of_sample_epoch_and_seed_row_by_row(tmp_path: Path) -> None:
    recipe = made(tmp_path)
    key, rows = SampleKey(3, 1), np.array([5, 0, 9])
    whole = dict(recipe.batch(rows, key))
    assert same(whole, dict(recipe.batch(rows, key)))
    for place, row in enumerate(rows):
        alone = recipe.batch(rows[place : place + 1], key)
        assert all(torch.equal(alone[name][0], whole[name][place]) for name in whole), row
    again = dict(recipe.batch(rows, SampleKey(3, 2)))
    assert not torch.equal(whole["input_ids_a"], again["input_ids_a"])
    assert torch.equal(whole["img_feats"], again["img_feats"])


def test_masking_leaves_the_samples_as_they_are(tmp_path: Path) -> None:
    """Phrases are masked anew in every epoch: nothing gathers over the epochs."""
    recipe = made(tmp_path)
    before = recipe.train.batch(np.arange(8))
    mask = recipe.known.mask
    counts = []
    for epoch in range(30):
        rows = recipe.batch(np.arange(8), SampleKey(0, epoch))
        counts.append(int((rows["input_ids_a"] == mask).sum()))
    assert max(counts[20:]) <= max(counts[:20]) + 3
    assert all(torch.equal(*pair) for pair in zip(before, recipe.train.batch(np.arange(8)), strict=True))


def test_labels_are_what_was_there_before_masking(tmp_path: Path) -> None:
    recipe = made(tmp_path)
    plain, chosen = recipe.train.batch(np.arange(16)), 0
    for epoch in range(6):
        rows = recipe.batch(np.arange(16), SampleKey(0, epoch))
        is_word, is_tag = rows["words"] >= 0, rows["tags"][:, :6] >= 0
        assert torch.equal(rows["words"][is_word], plain.input_ids_a[is_word])
        assert torch.equal(rows["tags"][:, :6][is_tag], plain.input_ids_b[is_tag])
        assert (rows["tags"][:, 6:] == -1).all()
        places = torch.arange(rows["words"].shape[1])
        index = rows["phrase_index"]
        is_phrase = (places >= index[:, :1]) & (places < index[:, 1:])
        assert not (is_word & is_phrase).any()
        kept = ~is_word & ~is_phrase
        assert torch.equal(rows["input_ids_a"][kept], plain.input_ids_a[kept])
        chosen += int(is_word.sum())
    assert chosen


def test_retrieval_masks_nothing(tmp_path: Path) -> None:
    recipe = made(tmp_path, "retrieval", losses=MvptrLossConfig(use=("vsc", "itm")))
    rows = recipe.batch(np.arange(4), SampleKey(0, 3))
    plain = recipe.train.batch(np.arange(4))
    assert torch.equal(rows["input_ids_a"], plain.input_ids_a)
    assert not {"words", "tags", "phrase_index"} & set(rows)


@pytest.mark.parametrize(
    ("task", "losses"),
    [
        ("pretrain", MvptrLossConfig()),
        ("pretrain", MvptrLossConfig(wpg_negatives="hard", wpg_regions="max", hard="sampled")),
        ("retrieval", MvptrLossConfig(use=("vsc", "itm"))),
    ],
)
def test_every_loss_falls(tmp_path: Path, task: str, losses: MvptrLossConfig) -> None:
    recipe = made(tmp_path, task, 6, losses=losses)
    _, found = learn(recipe, 25)
    assert np.isfinite(found).all()
    assert found[-1] < 0.8 * found[0]


def test_two_stages_are_the_one_sided_losses_first(tmp_path: Path) -> None:
    recipe = made(tmp_path, schedule="two_stage", first_stage_epochs=2)
    model = recipe.build_model()
    names = []
    for epoch in (0, 1, 2):
        batch = recipe.batch(np.arange(4), SampleKey(0, epoch))
        names.append(set(recipe.loss(model, recipe.embed(model, batch), epoch).parts))
    assert names == [{"mcr", "vsc"}, {"mcr", "vsc"}, {"mcr", "vsc", "mlm", "itm", "wpg"}]
    joint = made(tmp_path)
    batch = joint.batch(np.arange(4), SampleKey(0, 0))
    assert set(joint.loss(model, joint.embed(model, batch), 0).parts) == names[2]


@pytest.mark.parametrize("losses", [MvptrLossConfig(wpg_negatives="hard"), QUESTIONS])
def test_a_cached_step_is_the_whole_one(tmp_path: Path, losses: MvptrLossConfig) -> None:
    recipe = with_questions(tmp_path, losses=losses) if losses == QUESTIONS else made(tmp_path, losses=losses)
    gradients = []
    for config in (StepConfig(), StepConfig(cached_rows=3)):
        torch.manual_seed(0)
        model = recipe.build_model()
        rows, valid = np.arange(7), torch.ones(7, dtype=torch.bool)
        batch = recipe.batch(rows, SampleKey(0, 0))
        stepper = Stepper(recipe, model, config)
        stepper.backward(batch, valid, samples=torch.from_numpy(rows), epoch=0, seed=1)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    losses = (MvptrLossConfig(), MvptrLossConfig(wpg_negatives="hard", hard="sampled"))
    folders = [tmp_path / str(number) for number in range(len(losses))]
    given = [
        (str(folder), with_dropout(train_config(folder, "pretrain", losses=one)))
        for folder, one in zip(folders, losses, strict=True)
    ]
    given.append((str(tmp_path / "qa"), with_dropout(question_config(tmp_path / "qa"))))
    alone = mvptr_data.worker_steps(given, 0, 1)
    for worker in run_workers(2, mvptr_data.worker_steps, given, tmp_path):
        for found, expected in zip(worker, alone, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert found["parts"] == pytest.approx(expected["parts"], rel=1e-3, abs=1e-5)
            assert found["gradients"].keys() == expected["gradients"].keys()
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=2e-3, atol=2e-5)


def test_questions_are_read_with_answers_half_of_them_wrong(tmp_path: Path) -> None:
    recipe = with_questions(tmp_path, masking=MaskingConfig(words=0.0, tags=0.0, phrases=0.0))
    words, own = recipe.start.tokenizer, recipe.train.samples.column("answer").to_pylist()
    assert own[:3] == [None, "a big dog", "a big dog"]
    indices, wrong = np.arange(18), 0
    for epoch in range(8):
        rows = recipe.batch(indices, SampleKey(0, epoch))
        for place, answer in enumerate(own):
            segment = rows["token_type_ids_a"][place] == 1
            read = words.decode(rows["input_ids_a"][place][segment])
            assert rows["answers"][place] == (-1 if answer is None else int(read != answer)), (read, answer)
            assert segment.any() == (answer is not None)
        wrong += int((rows["answers"] == 1).sum())
    assert 0.3 < wrong / (8 * 12) < 0.7
    plain = recipe.train.batch(indices)  # what validation reads: the right ones
    found = [words.decode(ids[types == 1]) for ids, types in zip(plain.input_ids_a, plain.token_type_ids_a)]
    assert found == [answer or "" for answer in own]


def test_masked_words_of_questions_and_answers_are_labelled(tmp_path: Path) -> None:
    recipe, chosen = with_questions(tmp_path, masking=MaskingConfig(words=0.5, masked=0.0, random=0.0)), 0
    for epoch in range(3):
        rows = recipe.batch(np.arange(18), SampleKey(0, epoch))
        is_word, is_answer = rows["words"] >= 0, rows["token_type_ids_a"] == 1
        assert torch.equal(rows["words"][is_word], rows["input_ids_a"][is_word])
        assert 0.2 < float(is_word[is_answer].float().mean()) < 0.8
        chosen += int((is_word & ~is_answer).sum())
        special = (rows["input_ids_a"] == 2) | (rows["input_ids_a"] == 3)
        assert not (is_word & special).any()
        index, places = rows["phrase_index"], torch.arange(is_word.shape[1])
        assert not (is_word & (places >= index[:, :1]) & (places < index[:, 1:])).any()
    assert chosen


def test_with_questions_a_row_is_a_function_of_its_own_sample(tmp_path: Path) -> None:
    recipe, key = with_questions(tmp_path), SampleKey(3, 1)
    whole = dict(recipe.batch(np.arange(18), key))
    for row in (0, 4, 17):
        alone = recipe.batch(np.array([row]), key)
        assert all(torch.equal(alone[name][0], whole[name][row]) for name in whole), row


def test_right_and_wrong_answers_are_learnt_by_heart(tmp_path: Path) -> None:
    unmasked = MaskingConfig(words=0.0, tags=0.0, phrases=0.0)
    recipe = with_questions(tmp_path, losses=MvptrLossConfig(use=("qa",)), masking=unmasked)
    model, found = learn(recipe, 150, lr=1e-3)
    batch = recipe.batch(np.arange(18), SampleKey(0, 0))
    assert {0, 1} <= set(batch["answers"].tolist())
    assert found[-1] < 0.05 < 0.5 < found[0]
    with torch.no_grad():
        total = recipe.loss(model, recipe.embed(model, dict(batch) | {"answers": 1 - batch["answers"].clamp_min(0)}), 0)
    assert total.parts["qa"] > 1.0  # it knows which are right


def test_first_stages_and_other_losses_read_right_answers(tmp_path: Path) -> None:
    staged = with_questions(tmp_path / "staged", schedule="two_stage", first_stage_epochs=1)
    without = with_questions(tmp_path / "without", losses=MvptrLossConfig())
    plain = staged.train.batch(np.arange(18))
    for recipe in (staged, without):
        rows = recipe.batch(np.arange(18), SampleKey(0, 0))
        assert "answers" not in rows
        assert torch.equal(rows["token_type_ids_a"], plain.token_type_ids_a)
    assert staged.build_model().questions is not None and without.build_model().questions is None
    model = staged.build_model()
    parts = [
        set(staged.loss(model, staged.embed(model, staged.batch(np.arange(18), SampleKey(0, epoch))), epoch).parts)
        for epoch in (0, 1)
    ]
    assert parts == [{"mcr", "vsc"}, set(LOSS_NAMES)]


def test_questions_that_cannot_be_learnt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train.arrow has 0 different answers"):
        made(tmp_path / "captions", losses=QUESTIONS)
    short = dataclasses.replace(mvptr_data.LENGTHS, text=4)
    with pytest.raises(InputError, match="need lengths.text of 5 or more, got 4"):
        with_questions(tmp_path / "short", lengths=short)


def test_validation_gives_both_steps_and_the_pools_recall(tmp_path: Path) -> None:
    recipe = made(tmp_path, "retrieval", 14, losses=MvptrLossConfig(use=("vsc", "itm")), valid_pools=POOLS)
    model = recipe.build_model().eval()
    figures = recipe.evaluate(model)
    assert {"rsum", "fine_rsum", "i2t_recall_at_1", "fine_t2i_recall_at_10", "i2t_pool_recall"} <= set(figures)
    for way in ("i2t", "t2i"):
        assert figures[f"fine_{way}_recall_at_10"] <= figures[f"{way}_pool_recall"] <= 100.0
        assert figures[f"{way}_pool_recall"] == figures[f"{way}_recall_at_10"]  # pools of ten
    recipe.config = dataclasses.replace(recipe.config, valid_pools=None)
    assert not any(name.startswith("fine_") for name in recipe.evaluate(model))


def test_a_saved_model_is_a_start(tmp_path: Path) -> None:
    recipe = made(tmp_path)
    torch.manual_seed(4)
    model = recipe.build_model()
    recipe.save_model(model, str(tmp_path / "model"))
    saved = checkpoints.load(str(tmp_path / "model"))
    assert saved.phrases is not None and len(saved.phrases) > 3
    other = made(tmp_path / "again")
    changed = other.build_model()
    other.load_model(changed, str(tmp_path / "model"))
    assert same(dict(changed.state_dict()), dict(model.state_dict()))
    config = train_config(tmp_path / "tuned", "retrieval", losses=MvptrLossConfig(use=("vsc", "itm")))
    longer = dataclasses.replace(config.lengths, text=20, tags=9)
    config = dataclasses.replace(config, lengths=longer, cross_from=6, tokenizer="")
    tuned = recipe_of(tmp_path / "tuned", config, str(tmp_path / "model"))
    found = tuned.build_model()
    assert found.config.lengths == longer and found.config.first_cross_row == 6
    assert torch.equal(found.mvptr.text_projection, model.mvptr.text_projection)
    assert tuned.start.phrases.phrases == saved.phrases.phrases


def test_regions_of_another_width_are_refused(tmp_path: Path) -> None:
    recipe = made(tmp_path)
    recipe.save_model(recipe.build_model(), str(tmp_path / "model"))
    with pytest.raises(InputError, match="has regions of 12 numbers, but .* reads 10"):
        start_of(recipe.config, str(tmp_path / "model"), 12)


def test_an_image_without_regions_is_named(tmp_path: Path) -> None:
    config = train_config(tmp_path, "retrieval")
    pairs = mvptr_data.write_pairs(tmp_path / "more.parquet", range(20))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, pairs=pairs))
    with pytest.raises(InputError, match=r"train.arrow', row 8: .*no regions of image '1000000008'"):
        recipe_of(tmp_path, config)


def test_a_vocabulary_is_made_of_the_training_pairs(tmp_path: Path) -> None:
    config = train_config(tmp_path, "pretrain")
    start = start_of(config, "", 10)
    words = len(start.tokenizer)
    assert start.config.only_word_size == words
    assert start.config.vocab_size == start.phrases.rows > words
    assert start.phrases.id_of[("cat",)] == start.tokenizer.convert_tokens_to_ids("cat")
    table = read_side(config, "train", start)
    assert table.column("phrases").to_pylist()[0] == start.phrases.ids(mvptr_data.caption(0)[1])
    none = dataclasses.replace(config, min_sentences=0)
    assert start_of(none, "", 10).phrases is None
    learnt = dataclasses.replace(config, tokenizer="", wordpieces=120)
    assert 20 < len(start_of(learnt, "", 10).tokenizer) <= 120
