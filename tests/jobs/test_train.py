"""Training end to end: a tiny dual encoder learns, resumes after kills, and ends the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import karpathy_json

from jobs import train_xmatch
from xmatch import DualEncoder

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = """
model:
  dim: 8
  pooling: mean
  image: {name: test_resnet.r160_in1k, weights: none, image_size: 32, resize: 36}
  text: {name: null, trainable: true, hidden_size: 16, num_layers: 1, num_heads: 2, layers: [1], vocab_size: 60}
  image_head: {kind: linear, dropout: 0.1}
  text_head: {kind: linear, dropout: 0.1}
trainer: {epochs: 3, batch_size: 4}
"""


def arguments(folder: Path, images: str, *more: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{letter}.jpg" for letter in "abcdefghijkl"]
    captions = karpathy_json(folder / "c.json", {"train": names[:9], "val": names[9:]})
    (folder / "small.yaml").write_text(SMALL)
    data = [
        part for side in ("train", "valid") for part in (f"--{side}.captions", captions, f"--{side}.images", images)
    ]
    return ["--config", str(folder / "small.yaml"), *data, "--output", str(folder / "out"), *more]


@pytest.mark.parametrize(
    ("loss", "augment"), [("paired_hinge", "random_crop"), ("sentence_paired_hinge", "none"), ("info_nce", "flip")]
)
def test_a_run_leaves_a_model_checkpoints_and_a_record(ray_here, tmp_path: Path, image_folder, loss, augment) -> None:
    assert train_xmatch.main(arguments(tmp_path, image_folder, "--loss.name", loss, "--augment", augment)) == 0
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(row["loss"]) and row["samples"] == 18 for row in rows)
    assert list((out / "tensorboard").iterdir())
    assert DualEncoder.from_pretrained(str(out / "model")).encode_texts(["the cat"]).shape == (1, 8)


def test_going_on_after_a_stop_gives_the_undisturbed_curve(ray_here, tmp_path: Path, image_folder: str) -> None:
    extra = ("--augment", "flip", "--loss.name", "info_nce")
    assert train_xmatch.main(arguments(tmp_path / "whole", image_folder, *extra)) == 0
    assert (
        train_xmatch.main(arguments(tmp_path / "parts", image_folder, *extra, "--trainer.stop_after_epochs", "1")) == 0
    )
    assert train_xmatch.main(arguments(tmp_path / "parts", image_folder, *extra)) == 0
    curves = []
    for name in ("whole", "parts"):
        lines = (tmp_path / name / "out" / "metrics.jsonl").read_text().splitlines()
        curves.append([(row["epoch"], row["loss"], row["rsum"]) for row in map(json.loads, lines)])
    assert curves[0] == curves[1]


def test_two_workers_see_every_caption_once(ray_here, tmp_path: Path, image_folder: str) -> None:
    more = ("--trainer.workers", "2", "--augment", "none", "--loss.name", "info_nce", "--trainer.epochs", "1")
    assert train_xmatch.main(arguments(tmp_path, image_folder, *more)) == 0
    [row] = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["samples"] == 18
