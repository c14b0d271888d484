"""`jobs/train_alignment.py --method mvptr`: the presets, the plan, what is refused, and runs of every task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mvptr_data
import numpy as np
import pytest
import torch
from mvptr_data import image_name
from small_presets import CONFIGS

from alignment.mvptr import checkpoints
from alignment.mvptr.recipe_config import MATCHING
from alignment.mvptr.recipe_start import read_model_answers
from jobs import _mvptr_training, train_alignment
from raydeploy.config import load_config, to_plain
from xmatch.data.captions import CaptionSet
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError
from xmatch.training.leakage import SEEN_FILE, overlap, read_seen, require_disjoint, seen_record
from xmatch.training.optim import build_optimizer
from xmatch.training.recipe import PartedLoss, SampleKey

TUNED = {
    "optim.lr": 4e-5,
    "optim.weight_decay": 0.05,
    "optim.clip_norm": 1.0,
    "optim.warmup_share": 0.0,
    "trainer.seed": 88,
    "mvptr.lengths.phrases": 5,
}
PRETRAIN = {
    "mvptr.task": "pretrain",
    "mvptr.lengths": {"text": 35, "phrases": 5, "tags": 20, "regions": 50},
    "mvptr.losses.use": ["mcr", "vsc", "mlm", "itm", "wpg"],
    "mvptr.losses.wpg_margin": 0.2,
    "mvptr.losses.wpg_regions": "random_of_top3",
    "mvptr.masking": {"words": 0.15, "tags": 0.15, "phrases": 0.15, "masked": 0.8, "random": 0.1},
    "mvptr.min_sentences": 50,
    "mvptr.schedule": "joint",
    "optim.lr": 5e-5,
    "optim.weight_decay": 0.01,
    "optim.clip_norm": 10.0,
    "trainer.batch_size": 1024,
} | {f"mvptr.losses.{name}": 1.0 for name in ("mcr", "vsc", "mlm", "itm", "wpg")}
POOLS = {"captions_per_image": 128, "images_per_caption": 64}
PRESETS: dict[str, dict[str, Any]] = {
    "mvptr_pretrain": PRETRAIN,
    "mvptr_pretrain_no_flickr_test": PRETRAIN | {"mvptr.train.exclude_split": "test"},
    "mvptr_pretrain_qa": PRETRAIN
    | {"mvptr.losses.use": ["mcr", "vsc", "mlm", "itm", "wpg", "qa"], "mvptr.losses.qa": 1.0},
    "mvptr_retrieval_flickr30k": TUNED
    | {"trainer.batch_size": 64, "trainer.epochs": 10, "mvptr.valid_pools": POOLS, "mvptr.losses.use": ["vsc", "itm"]}
    | {"mvptr.lengths": {"text": 50, "phrases": 5, "tags": 20, "regions": 50}, "mvptr.tags.unique": True},
    "mvptr_retrieval_coco": TUNED
    | {"trainer.batch_size": 96, "trainer.epochs": 15, "mvptr.valid_pools": POOLS, "mvptr.losses.use": ["vsc", "itm"]}
    | {"mvptr.lengths": {"text": 50, "phrases": 5, "tags": 30, "regions": 50}, "mvptr.tags.unique": False},
    "mvptr_vqa": TUNED
    | {"optim.lr": 5e-5, "trainer.batch_size": 32, "trainer.epochs": 25, "mvptr.dropout": 0.3, "mvptr.cross_from": 20}
    | {"mvptr.lengths": {"text": 128, "phrases": 5, "tags": 30, "regions": 50}, "mvptr.answer_loss": "bce"}
    | {"mvptr.tags": {"unique": True, "beside_text": "all"}},
    "mvptr_snli_ve": TUNED
    | {"trainer.batch_size": 64, "trainer.epochs": 25, "mvptr.dropout": 0.1, "mvptr.cross_from": None}
    | {"mvptr.lengths": {"text": 70, "phrases": 5, "tags": 20, "regions": 70}, "mvptr.mask_training": 0.0},
    "mvptr_refexp": TUNED
    | {"trainer.batch_size": 64, "trainer.epochs": 25, "mvptr.dropout": 0.1, "mvptr.head.region_score": "cosine"}
    | {"mvptr.lengths": {"text": 30, "phrases": 5, "tags": 20, "regions": 50}, "mvptr.head.layer": 2},
    "mvptr_refexp_weak": TUNED
    | {"trainer.batch_size": 64, "trainer.epochs": 25, "mvptr.dropout": 0.1, "mvptr.head.region_score": "cosine"}
    | {"mvptr.lengths": {"text": 30, "phrases": 5, "tags": 20, "regions": 50}, "mvptr.head.layer": None}
    | {"mvptr.supervision": "images", "mvptr.weak.margin": 0.2},
}
AS_RELEASED = "mvptr_as_released"
SIZES = {"hidden_size": 32, "num_layers": 6, "num_heads": 2, "intermediate_size": 48, "max_positions": 140}


def load(arguments: list[str]) -> train_alignment.TrainAlignmentConfig:
    return load_config(train_alignment.TrainAlignmentConfig, arguments, name="train_alignment", description="").config


def data_of(preset: str, folder: Path, count: int = 8) -> list[str]:
    """Arguments of made-up data in the form of the preset's task."""
    folder.mkdir(parents=True, exist_ok=True)
    task = preset.removeprefix("mvptr_").split("_")[0].replace("snli", "snli_ve")
    each = 4 if task == "refexp" else None
    given = ["--mvptr.regions", mvptr_data.write_bank(folder, count, each)]
    if task in MATCHING:
        pairs = mvptr_data.write_pairs(folder / "pairs.parquet", range(count))
        given += ["--mvptr.train.pairs", pairs, "--mvptr.valid.pairs", pairs]
    elif task == "refexp":
        data = mvptr_data.write_expressions(folder, count)["data"]
        given += ["--mvptr.train.data", data, "--mvptr.valid.data", data]
    else:
        made = mvptr_data.write_vqa(folder, count) if task == "vqa" else mvptr_data.write_entailment(folder, count)
        if task == "vqa":
            given += ["--mvptr.answers", made["answers"]]
        for side in ("train", "valid"):
            given += [f"--mvptr.{side}.data", made["data"]]
            given += [f"--mvptr.{side}.phrases", made["phrases"]] if task == "vqa" else []
    if preset == "mvptr_pretrain_qa":
        made = mvptr_data.write_questions(folder / "qa", range(count))
        given += ["--mvptr.train.pairs", f"{pairs},{made['pairs']}", "--mvptr.train.phrases", made["phrases"]]
        given += ["--mvptr.train.answers", made["answers"]]
    if preset.endswith("no_flickr_test"):
        given += ["--mvptr.train.exclude", karpathy(folder, count)]
    return given


def karpathy(folder: Path, count: int) -> str:
    """A file of Flickr30k of as many images, of which the last two are of the test split."""
    images = [
        {
            "filename": f"{image_name(row)}.jpg",
            "split": "test" if row >= count - 2 else "train",
            "sentences": [{"raw": mvptr_data.caption(row, n)[0], "sentid": 2 * row + n} for n in range(2)],
        }
        for row in range(count)
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    return str(folder / "dataset_flickr30k.json")


def miniature(preset: str, folder: Path, count: int = 8) -> list[str]:
    """A preset on made-up data, made anew in small."""
    given = ["--config", str(CONFIGS / f"{preset}.yaml"), *data_of(preset, folder, count)]
    given += ["--mvptr.bert", "", "--mvptr.tokenizer", mvptr_data.save_tokenizer(folder), "--mvptr.min_sentences", "1"]
    given += ["--mvptr.model", json.dumps(SIZES), "--ray.calibration_s", "0", "--trainer.epochs", "2"]
    return [*given, "--trainer.batch_size", "8", "--optim.lr", "0.001", "--output", str(folder / "out")]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_published_numbers(preset: str, tmp_path: Path) -> None:
    given = ["--config", str(CONFIGS / f"{preset}.yaml"), *data_of(preset, tmp_path), "--output", "o"]
    plain = to_plain(load(given))
    assert plain["method"] == "mvptr"
    for key, expected in PRESETS[preset].items():
        found = plain
        for part in key.split("."):
            found = found[part]
        assert found == expected, f"{key} is {found!r}, published is {expected!r}"


def test_every_preset_is_pinned() -> None:
    assert {path.stem for path in CONFIGS.glob("mvptr_*.yaml")} == {*PRESETS, AS_RELEASED}
    table = (CONFIGS.parents[1] / "docs" / "recipes.md").read_text()
    assert all(f"{name}.yaml" in table for name in PRESETS)


@pytest.mark.parametrize("preset", ["mvptr_pretrain", "mvptr_pretrain_qa", "mvptr_retrieval_coco"])
def test_the_released_losses_stand_on_a_preset(preset: str, tmp_path: Path) -> None:
    given = [*data_of(preset, tmp_path), "--output", "o"]
    files = [["--config", str(CONFIGS / f"{name}.yaml")] for name in (preset, AS_RELEASED)]
    ours, theirs = load([*files[0], *given]), load([*files[0], *files[1], *given])
    changes = {"negatives": "local", "same_image": "negative", "max_logit_scale": 0.0, "wpg_pairing": "as_drawn"}
    losses = dataclasses.replace(ours.mvptr.losses, **changes)
    assert theirs == dataclasses.replace(ours, mvptr=dataclasses.replace(ours.mvptr, losses=losses)) != ours


VQA_HEADS = [["--mvptr.head.vqa_from", "pooled_and_sides"], ["--mvptr.head.vqa_from", "pooled"]]


@pytest.mark.parametrize(
    ("preset", "given"),
    [
        *((preset, []) for preset in PRESETS),
        *(("mvptr_vqa", [*head, "--mvptr.head.classifier", "mlp"]) for head in VQA_HEADS),
    ],
)
def test_a_preset_learns(preset: str, given: list[str], tmp_path: Path) -> None:
    config = load([*miniature(preset, tmp_path), *given])
    prepared = _mvptr_training.prepare(config)
    data = _mvptr_training.write_data(prepared, str(tmp_path / "data"), config, "")
    recipe = _mvptr_training.recipe_factory(config, config.mvptr, prepared.start, data)()
    torch.manual_seed(0)
    model = recipe.build_model()
    optimizer = build_optimizer(recipe.parameter_groups(model), config.optim)
    batch, losses = recipe.batch(np.arange(min(8, recipe.num_samples)), SampleKey(0, 0)), []
    for _ in range(5):
        torch.manual_seed(1)
        optimizer.zero_grad()
        found = recipe.loss(model, recipe.embed(model, batch), epoch=0)
        loss = found.total if isinstance(found, PartedLoss) else found
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def seen_by(preset: str, folder: Path) -> Any:
    config = load(miniature(preset, folder))
    return seen_record(_mvptr_training.captions_of(_mvptr_training.prepare(config).train), role="train")


def test_the_leak_guard_confirms_that_flickr_test_images_were_left_out(tmp_path: Path) -> None:
    test = read_text_captions(karpathy(tmp_path, 8), "test")
    assert len(test.image_ids) == 2
    with_them = overlap(seen_by("mvptr_pretrain", tmp_path / "all"), test)
    assert with_them.images_leaked == 2
    with pytest.raises(InputError, match="has seen 2 of the 2 images"):
        require_disjoint(with_them, allow=False)
    test_only = CaptionSet(test.image_ids, test.image_paths, ["nothing"] * 4, test.caption_ids, test.caption_image)
    without = overlap(seen_by("mvptr_pretrain_no_flickr_test", tmp_path / "without"), test_only)
    assert without.images_leaked == 0
    require_disjoint(without, allow=False)


def test_the_plan_says_what_is_trained(tmp_path: Path) -> None:
    rows = dict(train_alignment.plan(load(miniature("mvptr_pretrain", tmp_path))).rows)
    assert rows["losses"] == "1 mcr, 1 vsc, 1 mlm, 1 itm, 1 wpg, joint"
    assert rows["training"] == "16 samples of 8 images"
    assert (rows["start"], rows["steps"]) == ("anew", "2 x 2 epochs of 8 samples")
    rows = dict(train_alignment.plan(load(miniature("mvptr_refexp", tmp_path / "re"))).rows)
    assert (rows["task"], rows["losses"]) == ("refexp", "cosine")
    rows = dict(train_alignment.plan(load(miniature("mvptr_refexp_weak", tmp_path / "weak"))).rows)
    assert rows["losses"] == "cosine, without boxes, 0.2 above other_image"


@pytest.mark.parametrize(
    ("preset", "given", "words"),
    [
        ("mvptr_vqa", ["--mvptr.answers", ""], "mvptr.task=vqa needs mvptr.answers"),
        ("mvptr_vqa", ["--trainer.select_by", "rsum"], "give trainer.select_by=accuracy"),
        ("mvptr_refexp", ["--mvptr.train.split", "testA"], "has no list 'testA'; it has train, val"),
        ("mvptr_retrieval_coco", ["--mvptr.valid_pools", "null"], "so give mvptr.valid_pools"),
        ("mvptr_retrieval_coco", ["--init_from", "x"], "the model of init_from brings its sizes"),
        ("mvptr_retrieval_coco", ["--mvptr.lengths.tags", "1"], "text and tags hold [CLS] and [SEP]"),
        ("mvptr_pretrain", ["--mvptr.train.exclude_split", "test"], "give that, too"),
        ("mvptr_pretrain_qa", ["--mvptr.train.answers", ""], "mvptr.train has 0 different answers; give a corpus"),
        ("mvptr_pretrain", ["--trainer.gradient_checkpointing", "true"], "does not checkpoint its gradients"),
    ],
)
def test_what_cannot_work_is_refused(
    preset: str, given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_alignment.main([*miniature(preset, tmp_path), *given, "--plan"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def trained(preset: str, folder: Path, *given: str) -> list[dict[str, Any]]:
    assert train_alignment.main([*miniature(preset, folder), *given]) == 0
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_pre_training_to_every_task(ray_here, tmp_path: Path) -> None:
    """Two epochs of each, each task from the pre-trained model."""
    first = trained("mvptr_pretrain", tmp_path / "pretrain", "--mvptr.schedule", "two_stage")
    assert "loss_mlm" not in first[0] and "loss_mlm" in first[1]
    start = str(tmp_path / "pretrain" / "out" / "model")
    assert checkpoints.load(start).model.head.task == "pretraining"
    assert read_seen(f"{start}/{SEEN_FILE}").num_rows == 24
    for preset in ("mvptr_retrieval_flickr30k", "mvptr_vqa", "mvptr_snli_ve", "mvptr_refexp"):
        folder = tmp_path / preset
        arguments = miniature(preset, folder)
        for name in ("--mvptr.bert", "--mvptr.tokenizer", "--mvptr.model"):
            place = arguments.index(name)
            del arguments[place : place + 2]
        assert train_alignment.main([*arguments, "--init_from", start]) == 0, preset
        saved = checkpoints.load(str(folder / "out" / "model"))
        config = load(miniature(preset, folder))
        assert saved.model.config.lengths == config.mvptr.lengths
        assert saved.phrases is not None
        seen = read_seen(str(folder / "out" / "model" / SEEN_FILE))
        assert len(seen) >= 24 + 8 * (preset != "mvptr_retrieval_flickr30k")  # its own, and what the start has seen
        figures = (folder / "out" / "model" / "README.md").read_text()
        assert ("accuracy" if preset != "mvptr_retrieval_flickr30k" else "fine_i2t_recall_at_1") in figures
    assert read_model_answers(str(tmp_path / "mvptr_vqa" / "out" / "model")) == mvptr_data.ANSWERS


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pre_training_on_questions(ray_here, tmp_path: Path) -> None:
    """The head for answers is learnt and kept; a run without questions goes on from it."""
    rows = trained("mvptr_pretrain_qa", tmp_path)
    assert all(np.isfinite(row["loss_qa"]) for row in rows)
    start = str(tmp_path / "out" / "model")
    saved = checkpoints.load(start).model
    assert saved.head.questions and "1 qa" in Path(start, "README.md").read_text()
    assert (
        read_seen(f"{start}/{SEEN_FILE}").num_rows == 16 + 24 + 16
    )  # captions, lines of the corpus, images by either name
    config = load(
        ["--config", str(CONFIGS / "mvptr_pretrain.yaml"), *data_of("mvptr_pretrain", tmp_path), "--output", "o"]
    )
    prepared = _mvptr_training.start_of(dataclasses.replace(config.mvptr, bert=""), start, mvptr_data.WIDTH)
    assert not prepared.head.questions
