"""`jobs/train_alignment.py --method selfalign`: the plan, the presets, what is refused, and runs from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from selfalign_cases import REGION_WIDTH, write_pairs
from small_models import karpathy_json
from small_presets import CONFIGS, save_bert, save_clip

from jobs import train_alignment
from raydeploy.config import load_config, to_plain
from xmatch import DualEncoder

PUBLISHED = {
    "method": "selfalign",
    "loss.name": "hardest_triplet",
    "loss.margin": 0.2,
    "loss.reduction": "sum",
    "model.dim": 2048,
    "model.image.width": 2048,
    "model.context_head": True,
    "model.legacy_norm_axis": False,
    "selfalign.concept": 1.0,
    "selfalign.context": 1.0,
    "selfalign.prototypes": 1024,
    "selfalign.student_temperature": 0.1,
    "selfalign.epsilon": 0.05,
    "selfalign.iterations": 2,
    "selfalign.image_temperature": 0.7,
    "selfalign.text_temperature": 0.7,
    "selfalign.negatives": 512,
    "optim.name": "adam",
    "optim.schedule": "steps",
    "optim.gamma": 0.1,
    "optim.clip_norm": 2.0,
    "trainer.batch_size": 128,
    "trainer.seed": 1024,
}
VSRN = {"optim.lr": 2e-4, "model.text.word_dim": 300, "side_losses.caption_generation": 1.0, "trainer.epochs": 30}
CAMERA = {
    "optim.lr": 1e-4,
    "model.views": 12,
    "model.image_context.heads": 64,
    "model.text.name": "bert-base-uncased",
    "model.text.trainable": False,
    "side_losses.diversity": 0.01,
    "optim.frozen_epochs": {"training_only.prototypes": 1},
    "optim.clip_frozen": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "vsrn_selfalign_flickr30k": VSRN | {"model.pooling_batch_norm": True, "optim.milestones": [10, 20]},
    "vsrn_selfalign_coco": VSRN | {"model.pooling_batch_norm": False, "optim.milestones": [15]},
    "camera_selfalign_flickr30k": CAMERA | {"trainer.epochs": 30, "optim.milestones": [10, 20]},
    "camera_selfalign_coco": CAMERA | {"trainer.epochs": 40, "optim.milestones": [20]},
}
SMALL = ["--model.dim", "8", "--selfalign.prototypes", "6", "--trainer.epochs", "2", "--trainer.batch_size", "12"]


def load(arguments: list[str]) -> train_alignment.TrainAlignmentConfig:
    return load_config(train_alignment.TrainAlignmentConfig, arguments, name="train_alignment", description="").config


def regions(folder: Path, preset: str) -> list[str]:
    """A preset on drawn regions, its towers made small."""
    place = write_pairs(folder / "precomp", 24)
    given = ["--config", str(CONFIGS / f"{preset}.yaml"), "--train.captions", place, "--valid.captions", place]
    given += [*SMALL, "--model.image.width", str(REGION_WIDTH), "--ray.calibration_s", "0"]
    if preset.startswith("vsrn"):
        given += ["--model.text.word_dim", "8", "--side_losses.caption_hidden", "8"]
    else:
        given += ["--model.text.name", save_bert(folder / "bert", layers=1), "--model.views", "3"]
        given += ["--model.image_context.heads", "4", "--model.text_context.heads", "4"]
    return [*given, "--output", str(folder / "out")]


def photos(folder: Path, images: str) -> list[str]:
    """Captions of photographs."""
    captions = karpathy_json(folder / "c.json", {"train": [f"{a}.jpg" for a in "abcdefgh"], "val": ["i.jpg", "j.jpg"]})
    sides = [
        part for side in ("train", "valid") for part in (f"--{side}.captions", captions, f"--{side}.images", images)
    ]
    return [*sides, *SMALL, "--ray.calibration_s", "0", "--output", str(folder / "out")]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_published_numbers(preset: str) -> None:
    given = ["--config", str(CONFIGS / f"{preset}.yaml"), "--train.captions", "p", "--valid.captions", "p"]
    plain = to_plain(load([*given, "--output", "o"]))
    for key, expected in (PUBLISHED | PRESETS[preset]).items():
        found = plain
        for part in key.split("."):
            found = found[part]
        assert found == expected, f"{key} is {found!r}, published is {expected!r}"
    assert f"{preset}.yaml" in (CONFIGS.parents[1] / "docs" / "recipes.md").read_text()


def test_the_plan_names_the_losses(tmp_path: Path) -> None:
    rows = dict(train_alignment.plan(load(regions(tmp_path, "vsrn_selfalign_flickr30k"))).rows)
    assert rows["losses"] == "1 hardest_triplet, 1 caption_generation, 1 concept, 1 context"
    assert (rows["start"], rows["images"]) == ("anew", "ready-made regions")
    assert "captions with a grounded entity" not in rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--method", "selfalign"], "method=selfalign trains host and alignment together: give model"),
        (["--method", "selfalign", "--model.context_head", "true", "--entities", "e"], "belong to method=agree"),
        (["--method", "selfalign", "--model.dim", "8", "--selfalign.epsilon", "0"], "epsilon must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(
    given: list[str], words: str, tmp_path: Path, image_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [part for part in photos(tmp_path, image_folder) if part not in ("--model.dim", "8")]
    assert train_alignment.main([*start, *given, "--plan"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def trained(folder: Path) -> tuple[list[dict[str, Any]], DualEncoder]:
    """The figures of a run's epochs, and its model, which has no weights of training alone."""
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    model = folder / "out" / "model"
    assert not [name for name in load_file(model / "model.safetensors") if "training_only" in name]
    assert not (model / "training_only.safetensors").exists()
    assert "SelfAlign" in (model / "README.md").read_text()
    return rows, DualEncoder.from_pretrained(str(model))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["vsrn_selfalign_flickr30k", "camera_selfalign_coco"])
def test_host_and_alignment_train_from_scratch_and_go_on_after_a_stop(ray_here, tmp_path: Path, preset: str) -> None:
    given = regions(tmp_path, preset)
    assert train_alignment.main([*given, "--trainer.stop_after_epochs", "1"]) == 0
    assert train_alignment.main([*given, "--trainer.workers", "2"]) == 0
    rows, model = trained(tmp_path)
    side = "caption_generation" if preset.startswith("vsrn") else "diversity"
    losses = {"loss_matching", f"loss_{side}", "loss_concept", "loss_context"}
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(losses <= set(row) and min(row[name] for name in losses) > 0 for row in rows)
    assert model.embedding_width == 24
    assert model.image_shape == ((24,) if preset.startswith("vsrn") else (3, 24))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["grid", "clip"])
def test_our_own_dual_encoders_train_too(ray_here, tmp_path: Path, image_folder: str, kind: str) -> None:
    """VSE-infinity's pooling on the grid of a CNN, and a CLIP on its patches, both on decoded photographs."""
    given = ["--config", str(CONFIGS / "vse_infty_selfalign_grid.yaml"), *photos(tmp_path, image_folder)]
    given += ["--model.image.weights", "none", "--model.image.image_size", "32", "--model.image.resize", "32"]
    if kind == "grid":
        given += ["--model.image.name", "test_resnet.r160_in1k", "--model.text.hidden_size", "16"]
    else:
        clip = save_clip(tmp_path / "clip", "clip")
        given += ["--model.image.kind", "clip", "--model.image.name", clip, "--model.text.name", clip]
        given += ["--model.text.max_len", "20"]
    assert train_alignment.main([*given, "--trainer.precision", "fp32"]) == 0
    rows, model = trained(tmp_path)
    assert {"loss_matching", "loss_concept", "loss_context"} <= set(rows[0])
    assert model.image_tower.gives_sets
