"""Recipes of docs/recipes.md that train, one of each family, in miniature, through the job's own main."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_presets import CONFIGS, DIM, HOSTS, REGION_WIDTH, miniature, precomp

from jobs import train_xmatch
from raydeploy.config import load_config
from xmatch import DualEncoder
from xmatch.training.samples import read_split

FAMILIES = [
    "vokenization_bert_resnext",
    "maria_sentence",
    "vse_pp",
    "vse_infty_region_bert",
    "vse_infty_region_bigru",
    "vse_infty_grid_butd_bert",
    "vse_infty_grid_wsl_bigru",
    "vse_infty_grid_imagenet_bert",
    "vsrn_flickr30k",
    "camera_flickr30k",
    "clip_finetune",
    "siglip_finetune",
]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def trained(arguments: list[str], out: Path) -> tuple[DualEncoder, list[dict[str, Any]]]:
    """Run the job; the best model and the figures of each epoch."""
    assert train_xmatch.main(arguments) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    return DualEncoder.from_pretrained(str(out / "model")), rows


def smaller_trunk(name: str) -> list[str]:
    """The smallest ResNet in the layout of a grid preset."""
    if "grid" not in name:
        return []
    return ["--model.image.name", f"resnet50/{'torchvision' if 'wsl' in name else 'caffe'}"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_trains(ray_here, name: str, tmp_path: Path, image_folder: str) -> None:
    model, rows = trained([*miniature(name, tmp_path, image_folder), *smaller_trunk(name)], tmp_path / "out")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0]["samples"] == (35 if name.startswith(("vse_infty", *HOSTS)) else 16)
    texts = model.encode_texts(["the cat sat", "a dog"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-5)
    if "region" in name or name.startswith(HOSTS):
        places = np.ones((2, 4, 6), np.float32)
        images = model.encode_features(np.ones((2, 4, REGION_WIDTH), np.float32), positions=places)
    else:
        images = model.encode_images([f"{image_folder}/a.jpg", f"{image_folder}/b.jpg"])
    assert images.shape == (2, *model.image_shape)
    assert texts.shape == (2, DIM if name != "siglip_finetune" else 16)


def test_vse_pp_trains_on_precomputed_vectors(ray_here, tmp_path: Path) -> None:
    tree = str(precomp(tmp_path / "data", regions=True, members=0))
    sides = ("train", "valid")
    data = [part for side in sides for part in (f"--{side}.captions", tree, f"--{side}.inputs", "regions")]
    tower = ["--model.image.kind", "regions", "--model.image.output", "grid", "--model.image.width", str(REGION_WIDTH)]
    small = ["--model.dim", str(DIM), "--model.text.hidden_size", str(DIM), "--trainer.batch_size", "8"]
    model, _ = trained(
        ["--config", str(CONFIGS / "vse_pp.yaml"), *data, "--valid.split", "dev", *tower, *small]
        + ["--model.image_head.kind", "fc", "--augment", "none", "--trainer.epochs", "1"]
        + ["--output", str(tmp_path / "out")],
        tmp_path / "out",
    )
    assert model.encode_features(np.ones((3, 1, REGION_WIDTH), np.float32)).shape == (3, DIM)


def test_vse_pp_is_fine_tuned(ray_here, tmp_path: Path, image_folder: str) -> None:
    given = miniature("vse_pp", tmp_path, image_folder)
    config = load_config(train_xmatch.TrainXmatchConfig, given, name="train_xmatch", description="").config
    tokenizer = train_xmatch.build_tokenizer(config, read_split(config.train).captions)
    start = DualEncoder.from_config(config.model, tokenizer)
    start.save_pretrained(str(tmp_path / "start"))
    slower = ["--optim.lr", "0.00002", "--optim.schedule", "constant", "--optim.milestones", "[]"]
    onward = ["--init_from", str(tmp_path / "start"), "--model.image.trainable", "all", *slower]
    tuned, _ = trained([*given, *onward, "--trainer.epochs", "1"], tmp_path / "out")
    before, after = start.image_tower.state_dict(), tuned.image_tower.state_dict()
    changed = {name for name in before if not bool((before[name] == after[name]).all())}
    assert any("conv" in name for name in changed)
    assert not any("running" in name for name in changed)
