"""Training end to end: a tiny dual encoder learns, resumes after kills, and ends the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_cache import fill_hub_cache
from huggingface_hub import constants
from small_models import karpathy_json, tiny_vocabulary
from transformers import BertConfig, BertModel

from jobs import train_xmatch
from xmatch import DualEncoder
from xmatch.models import hub

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
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
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(list((out / "checkpoints").glob("step-*/optimizer.pt"))) == 2
    assert "loss" in (out / "run" / "config.yaml").read_text()
    assert DualEncoder.from_pretrained(str(out / "model")).encode_texts(["the cat"]).shape == (1, 8)


def test_workers_load_a_tower_of_the_hub_from_a_copy_and_the_model_keeps_its_name(
    ray_here, tmp_path: Path, image_folder: str, monkeypatch
) -> None:
    """The cache that stands for the hub is seen by this process alone."""
    tokenizer = tiny_vocabulary()
    bert = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    hub._snapshot.cache_clear()
    cache = fill_hub_cache(tmp_path / "home", "someone/bert", str(tmp_path / "bert"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tower = ["--model.text.name", "someone/bert", "--model.text.layers", "[1]", "--tokenizer", str(tmp_path / "bert")]
    assert train_xmatch.main(arguments(tmp_path, image_folder, *tower, "--trainer.epochs", "1")) == 0
    out = tmp_path / "out"
    assert len(list((out / "models").iterdir())) == 1
    assert json.loads((out / "model" / "config.json").read_text())["text"]["name"] == "someone/bert"
    hub._snapshot.cache_clear()
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


def curve(folder: Path) -> list[tuple[float, float]]:
    rows = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [(row["loss"], row["rsum"]) for row in rows if row["samples"] == 18]


@pytest.mark.parametrize("loss", ["info_nce", "paired_hinge"])
def test_two_workers_have_the_curve_of_one_and_equal_runs_equal_weights(ray_here, tmp_path, image_folder, loss) -> None:
    """With random crops, dropped words, and dropout in tower, attention and heads: all of them drawn by sample."""
    more = ("--loss.name", loss, "--size_augment.words", "0.2", "--optim.lr", "0.003")
    for name, workers in (("one", "1"), ("two", "2"), ("again", "1")):
        assert train_xmatch.main(arguments(tmp_path / name, image_folder, *more, "--trainer.workers", workers)) == 0
    one, two = (curve(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 3
    for single, double in zip(one, two, strict=True):
        assert double == pytest.approx(single, abs=1e-4)
    first, again = ((tmp_path / name / "out/model/model.safetensors").read_bytes() for name in ("one", "again"))
    assert first == again


def test_cached_steps_have_the_curve_of_whole_ones(ray_here, tmp_path: Path, image_folder: str) -> None:
    more = ("--loss.name", "info_nce", "--augment", "flip")
    assert train_xmatch.main(arguments(tmp_path / "whole", image_folder, *more)) == 0
    assert train_xmatch.main(arguments(tmp_path / "cached", image_folder, *more, "--trainer.cached_rows", "1")) == 0
    for whole, cached in zip(curve(tmp_path / "whole"), curve(tmp_path / "cached"), strict=True):
        assert cached == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("caching", ["none", "flip", "features"])
def test_features_are_not_computed_once_where_the_tower_learns(tmp_path: Path, image_folder, capsys, caching) -> None:
    more = ["--features", str(tmp_path)] if caching == "features" else ["--augment", caching]
    assert train_xmatch.main(arguments(tmp_path, image_folder, *more, "--model.image.trainable", "all")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "frozen image tower" in said and "trainable is 'all'" in said
    assert train_xmatch.main(arguments(tmp_path, image_folder, "--features", str(tmp_path))) == 2
    assert "augment=random_crop" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_wandb_is_asked_for_before_anything_starts(tmp_path: Path, image_folder: str, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_xmatch.main(arguments(tmp_path, image_folder, "--trainer.wandb_project", "x")) == 2
    assert "pip install wandb" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
