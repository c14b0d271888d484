"""Fine-tuning on entities: what the plan says, what is refused, and a run of all six losses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agree_data import rows_of
from small_models import karpathy_json, tiny_config, tiny_model_object, tiny_vocabulary
from small_presets import CONFIGS, save_clip

from alignment.agree.losses import LOSS_NAMES
from alignment.entities.entity_tables import Box, box_table, entity_table, write_boxes, write_entities
from jobs import convert, embed, train_alignment, train_xmatch
from raydeploy.config import load_config, to_plain
from raydeploy.feature_bank import tower_identity
from raydeploy.forecast import Forecast
from xmatch import DualEncoder
from xmatch.data.captions import CaptionSet, read_captions
from xmatch.data.files import write_json
from xmatch.errors import InputError
from xmatch.models.towers.text import TextTowerConfig

LETTERS = "abcdefghijkl"
TEXTUAL = ["--losses.use", "[contrastive, prompt, text_mask]"]


def trains(test: Callable[..., None]) -> Callable[..., None]:
    """A test that trains through Ray."""
    return pytest.mark.ray(pytest.mark.slow(pytest.mark.timeout(600)(test)))


def data(folder: Path, images: str) -> tuple[list[str], CaptionSet]:
    """Arguments for captions, entities, boxes and other photographs; and the training captions."""
    names = [f"{letter}.jpg" for letter in LETTERS]
    captions = karpathy_json(folder / "c.json", {"train": names[:9], "val": names[9:]})
    train = read_captions(captions, images, "train")
    entities, boxes = folder / "entities.parquet", folder / "boxes.parquet"
    write_entities(str(entities), entity_table(rows_of(read_captions(captions, images, "train,val"))))
    grounded = [Box(letter, "the cat", "grounding", 0.0, 0.0, 0.6, 0.6, 0.8) for letter in LETTERS[:6]]
    objects = [Box(letter, "dog", "visual_genome", 0.2, 0.2, 0.9, 0.9, 1.0) for letter in "xyzabc"]
    objects += [Box(letter, "the mat", "visual_genome", 0.0, 0.5, 0.9, 0.9, 1.0) for letter in "gh"]
    write_boxes(str(boxes), box_table([*grounded, *objects]))
    sides = [
        part for side in ("train", "valid") for part in (f"--{side}.captions", captions, f"--{side}.images", images)
    ]
    places = ["--entities", str(entities), "--boxes", str(boxes), "--object_photos", images]
    return [*sides, *places, "--output", str(folder / "out")], train


def saved(folder: Path) -> str:
    """A saved model whose image tower learns."""
    image = tiny_config().image
    text = TextTowerConfig(name=None, trainable=True, hidden_size=16, num_layers=1, num_heads=2, layers=(1,))
    config = tiny_config(text=text, image=type(image)(**{**vars(image), "trainable": "all"}))
    DualEncoder.from_config(config, tiny_vocabulary()).save_pretrained(str(folder))
    return str(folder)


def planned(arguments: list[str]) -> tuple[dict[str, str], Forecast | str]:
    """Rows and forecast of the job's plan."""
    config = load_config(train_alignment.TrainAlignmentConfig, arguments, name="train_alignment", description="").config
    plan = train_alignment.plan(config)
    return dict(plan.rows), plan.forecast


def test_the_plan_counts_entities_boxes_and_what_is_left_out(tmp_path: Path, image_folder: str) -> None:
    given, train = data(tmp_path, image_folder)
    given += ["--init_from", saved(tmp_path / "start"), "--entity.max_words", "5", "--entity.slots", "2"]
    plan, forecast = planned([*given, "--ray.calibration_s", "0"])
    rows = rows_of(train)
    fitting = [[e for e in row.entities if len(e.text.split()) <= 5] for row in rows]
    used = sum(min(2, len(found)) for found in fitting)
    too_long = sum(len(row.entities) - len(found) for row, found in zip(rows, fitting, strict=True))
    beyond = sum(max(0, len(found) - 2) for found in fitting)
    assert too_long > 0 and beyond > 0
    assert plan["entities"] == f"{used} in 18 captions, {used / 18:.2f} a caption"
    assert plan["captions without"] == str(sum(not found for found in fitting))
    assert plan["entities left out"] == f"{too_long} of more words than allowed, {beyond} beyond the slots"
    weights = "0.9 contrastive, 0.03 prompt, 0.1 text_mask, 0.03 visual, 0.15 visual_mask, 0.1 grounded_mask"
    assert plan["losses"] == weights
    grounded = sum("the cat" in text.lower() and row < 6 for text, row in zip(train.captions, train.caption_image))
    assert plan["captions with a grounded entity"] == f"{grounded} of 18"
    named = [any(word in text.lower() for word in ("dog", "the mat")) for text in train.captions]
    objects = sum(is_named or row in (0, 1, 2, 6, 7) for is_named, row in zip(named, train.caption_image))
    assert plan["captions with an object that another image shows"] == f"{objects} of 18"
    assert plan["images of visual_genome without a photo"] == "3; the first: 'x', 'y', 'z'"
    assert forecast == "not measured: ray.calibration_s is 0"


def test_a_forecast_is_measured_and_a_warm_up_beyond_the_run_is_told(tmp_path: Path, image_folder: str) -> None:
    given, _ = data(tmp_path, image_folder)
    given += ["--init_from", saved(tmp_path / "start"), "--ray.calibration_s", "0.2"]
    more = ["--trainer.batch_size", "9", "--optim.warmup_share", "0", "--optim.warmup_steps", "400"]
    plan, forecast = planned([*given, *more])
    assert plan["warm-up"] == "optim.warmup_steps is 400: the rate rises to 10% of optim.lr alone"
    assert isinstance(forecast, Forecast)
    assert forecast.units == 18 * 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--entities": ""}, "the loss 'prompt' is in use, but entities is empty"),
        ({"--boxes": ""}, "the loss 'visual' is in use, but boxes is empty"),
        ({"--features": "bank"}, "the loss 'visual' paints images, so it needs their pixels"),
        ({"--init_from": ""}, "give init_from"),
        ({"--train.inputs": "text"}, "captions without images"),
        ({"--tokenizer": "x"}, "brings its own tokenizer"),
        ({"--losses.use": "[contrastive]", "--features": "b"}, "a frozen image tower, but image.trainable is 'all'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    changes: dict[str, str], words: str, tmp_path: Path, image_folder: str, capsys
) -> None:
    given, _ = data(tmp_path, image_folder)
    given += ["--init_from", saved(tmp_path / "start"), *(part for pair in changes.items() for part in pair)]
    assert train_alignment.main([*given, "--ray.calibration_s", "0", "--plan"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_entities_of_other_captions_are_refused_and_of_other_texts_counted(tmp_path: Path, image_folder: str) -> None:
    given, train = data(tmp_path, image_folder)
    given += [*TEXTUAL, "--init_from", saved(tmp_path / "start"), "--ray.calibration_s", "0"]
    rows = rows_of(train)
    strangers = [row._replace(caption_id=f"x{row.caption_id}") for row in rows]
    write_entities(str(tmp_path / "entities.parquet"), entity_table(strangers))
    with pytest.raises(InputError, match="entities of none of the 18 captions: ids are like '0' here and like 'x0' th"):
        planned(given)
    changed = [rows[0]._replace(caption="another text", entities=()), *rows[1:-2]]
    write_entities(str(tmp_path / "entities.parquet"), entity_table(changed))
    plan, _ = planned(given)
    assert plan["captions without a row"] == "2; the first: '16', '17'"
    differing = plan["captions of another text"]
    assert differing.startswith("1; '0' is 'the cat sat on the mat .' here and 'another text' in ")


def test_a_loss_that_finds_nothing_is_refused(tmp_path: Path, image_folder: str) -> None:
    given, train = data(tmp_path, image_folder)
    given += ["--init_from", saved(tmp_path / "start"), "--ray.calibration_s", "0"]
    elsewhere = [Box("4711", "the cat", "grounding", 0.0, 0.0, 0.6, 0.6, 0.8)]
    shown = [Box("a", "unicorn", "visual_genome", 0.0, 0.0, 0.6, 0.6, 0.8)]
    write_boxes(str(tmp_path / "boxes.parquet"), box_table([*elsewhere, *shown]))
    with pytest.raises(InputError, match="no entity of the 18 captions has a grounding box in its image: .* '4711'"):
        planned([*given, "--losses.use", "[contrastive, grounded_mask]"])
    with pytest.raises(InputError, match="no object of the 18 captions .* shown by another image, .* like 'unicorn'"):
        planned([*given, "--losses.use", "[contrastive, visual]"])
    bare = [row._replace(entities=()) for row in rows_of(train)]
    write_entities(str(tmp_path / "entities.parquet"), entity_table(bare))
    with pytest.raises(InputError, match="none of the 18 captions has an entity"):
        planned([*given, *TEXTUAL])


def test_a_bank_of_features_must_be_of_the_same_tower_but_a_saved_one_forgets_its_weights(
    tmp_path: Path, image_folder: str
) -> None:
    given, _ = data(tmp_path, image_folder)
    tiny_model_object().save_pretrained(str(tmp_path / "start"))
    given += ["--init_from", str(tmp_path / "start"), "--features", str(tmp_path / "bank" / "shards"), *TEXTUAL]
    config = load_config(train_alignment.TrainAlignmentConfig, given, name="train_alignment", description="").config
    tower = tower_identity(tiny_config().image) | {"weights": "sha256 of a file"}
    write_json(str(tmp_path / "bank" / "identity.json"), {"tower": tower})
    assert train_alignment.model_config(config).image.image_size == 32
    write_json(str(tmp_path / "bank" / "identity.json"), {"tower": tower | {"image_size": 64}})
    with pytest.raises(InputError, match="model.image.image_size was 64 and is 32 now"):
        train_alignment.model_config(config)


def test_the_presets_have_the_published_numbers() -> None:
    sides = [part for side in ("train", "valid") for part in (f"--{side}.captions", "c.json", f"--{side}.images", "i")]
    given = ["--config", str(CONFIGS / "agree_flickr30k.yaml"), *sides, "--output", "o"]
    given += ["--entities", "e", "--boxes", "b", "--object_photos", "p"]
    config = load_config(train_alignment.TrainAlignmentConfig, given, name="train_alignment", description="").config
    plain = to_plain(config)
    assert [plain["losses"][name] for name in LOSS_NAMES] == [0.9, 0.03, 0.1, 0.03, 0.15, 0.1]
    assert plain["losses"]["use"] == list(LOSS_NAMES)
    assert (plain["entity"]["slots"], plain["entity"]["max_words"]) == (5, 7)
    expected = {"lr": 1e-5, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1, "warmup_steps": 10000}
    expected |= {"name": "adamw", "decay": "by_name", "schedule": "cosine", "clip_norm": float("inf")}
    expected |= {"limits": {"logit_scale": [0.0, 4.6052]}}
    assert {name: plain["optim"][name] for name in expected} == expected
    default = to_plain(train_alignment.TrainAlignmentConfig(output="o", **{k: getattr(config, k) for k in KEPT}))
    own = {"warmup_steps": 0, "warmup_share": 0.05}
    assert default["optim"] == plain["optim"] | own
    assert default["losses"] == plain["losses"]
    trainer = {"epochs": 50, "batch_size": 32, "workers": 4, "precision": "fp16"}
    assert {name: plain["trainer"][name] for name in trainer} == trainer


KEPT = ("train", "valid", "entities", "boxes", "object_photos", "init_from")


def figures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@trains
@pytest.mark.parametrize("start", ["matcher", "clip"])
def test_a_run_reports_each_loss_and_the_sum_falls(ray_here, tmp_path: Path, image_folder: str, start: str) -> None:
    given, _ = data(tmp_path, image_folder)
    if start == "clip":
        theirs = save_clip(tmp_path / "clip", "clip")
        model = ["--what", "import_model", "--kind", "clip", "--input", theirs, "--output", str(tmp_path / "start")]
        assert convert.main(model) == 0
    else:
        saved(tmp_path / "start")
    given += ["--init_from", str(tmp_path / "start"), "--trainer.epochs", "4", "--trainer.batch_size", "6"]
    given += ["--optim.lr", "0.02", "--ray.calibration_s", "0"]
    stopped = [*given, "--trainer.stop_after_epochs", "2"]
    assert train_alignment.main(stopped) == 0
    assert len(figures(tmp_path)) == 2
    assert train_alignment.main(given) == 0
    rows = figures(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert all(f"loss_{name}" in row and np.isfinite(row[f"loss_{name}"]) for row in rows for name in LOSS_NAMES)
    assert all(max(row[f"loss_{name}"] for row in rows) > 0 for name in LOSS_NAMES)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    report = json.loads((tmp_path / "out" / "run" / "report.json").read_text())
    assert report["values"]["entities"]["captions"] == 18
    assert "last loss_prompt" in report["rows"]
    tuned = DualEncoder.from_pretrained(str(tmp_path / "out" / "model"))
    before = DualEncoder.from_pretrained(str(tmp_path / "start"))
    assert 0.0 <= tuned.logit_scale.item() <= 4.6053
    assert tuned.logit_scale.item() != before.logit_scale.item()
    assert "0.03 prompt" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert (tmp_path / "out" / "model" / "training_data.parquet").exists()


@trains
def test_textual_losses_train_on_frozen_features(ray_here, tmp_path: Path, image_folder: str) -> None:
    given, _ = data(tmp_path, image_folder)
    captions = given[1]
    bank = ["--side", "image_features", "--captions.captions", captions, "--captions.images", image_folder]
    bank += ["--captions.split", "train,val", "--image_tower.name", "test_resnet.r160_in1k"]
    bank += ["--image_tower.weights", "none", "--image_tower.image_size", "32", "--image_tower.resize", "36"]
    assert embed.main([*bank, "--flip", "true", "--output", str(tmp_path / "bank")]) == 0
    first = ["--config", str(CONFIGS / "example_matcher.yaml"), *given[:8], "--output", str(tmp_path / "first")]
    tower = [
        "--model.image.name",
        "test_resnet.r160_in1k",
        "--model.image.weights",
        "none",
        "--model.image.stages",
        "0",
    ]
    tower += [
        "--model.image.image_size",
        "32",
        "--model.image.resize",
        "36",
        "--model.image.mean",
        "[0.485,0.456,0.406]",
    ]
    tower += [
        "--model.image.std",
        "[0.229,0.224,0.225]",
        "--model.text.hidden_size",
        "16",
        "--model.text.num_heads",
        "2",
    ]
    tower += ["--features", str(tmp_path / "bank" / "shards"), "--trainer.epochs", "1", "--ray.calibration_s", "0"]
    assert train_xmatch.main([*first, *tower]) == 0
    textual = ["--config", str(CONFIGS / "agree_textual.yaml"), *given, "--trainer.batch_size", "9"]
    textual += ["--optim.lr", "0.01", "--trainer.epochs", "6"]
    textual += ["--init_from", str(tmp_path / "first" / "model"), "--features", str(tmp_path / "bank" / "shards")]
    assert train_alignment.main([*textual, "--trainer.workers", "2", "--ray.calibration_s", "0"]) == 0
    rows = figures(tmp_path)
    assert {name for name in rows[0] if name.startswith("loss_")} == {
        "loss_contrastive",
        "loss_prompt",
        "loss_text_mask",
    }
    assert rows[-1]["loss"] < rows[0]["loss"]
    start, tuned = (DualEncoder.from_pretrained(str(tmp_path / at / "model")) for at in ("first", "out"))
    assert (start.feature_mean == tuned.feature_mean).all() and start.feature_mean.any()


@trains
def test_a_person_may_give_relative_paths(tmp_path: Path, image_folder: str) -> None:
    """As a process of its own: workers of a Ray that the job starts read paths as the job does."""
    given, _ = data(tmp_path, image_folder)
    saved(tmp_path / "start")
    relative = [part.removeprefix(f"{tmp_path}/") for part in given]
    command = [sys.executable, str(CONFIGS.parent / "train_alignment.py"), *relative, *TEXTUAL, "--init_from", "start"]
    small = ["--trainer.epochs", "1", "--ray.calibration_s", "0", "--ray.num_cpus", "2", "--ray.object_store_mb", "200"]
    done = subprocess.run([*command, *small], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--output out" in " ".join(relative)
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
