"""Features of frozen towers: computed once, by either job, they train the same model as the towers themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import karpathy_json, tiny_vocabulary
from transformers import BertConfig, BertModel

from jobs import embed, train_xmatch
from xmatch import DualEncoder
from xmatch.data.feature_sets import FeatureSets
from xmatch.training.leakage import read_seen

SMALL = """
model:
  dim: 8
  pooling: mean
  image: {name: test_resnet.r160_in1k, weights: none, image_size: 32, resize: 36, output: OUTPUT}
  text: {name: TEXT, trainable: false, layers: [1]}
  image_head: {kind: linear, dropout: 0.0}
  text_head: {kind: linear, dropout: 0.0}
loss: {name: LOSS}
trainer: {epochs: 2, batch_size: 4}
"""


def bert(folder: Path) -> str:
    """A saved BERT with random weights, and its tokenizer."""
    tokenizer = tiny_vocabulary()
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def prepared(folder: Path, images: str, output: str, loss: str) -> tuple[list[str], list[str]]:
    """Arguments that train needs, and those that embed needs, of the same splits and towers."""
    names = [f"{letter}.jpg" for letter in "abcdefghijkl"]
    captions = karpathy_json(folder / "c.json", {"train": names[:9], "val": names[9:]})
    text = bert(folder / "bert")
    small = SMALL.replace("OUTPUT", output).replace("TEXT", text).replace("LOSS", loss)
    (folder / "small.yaml").write_text(small)
    train = ["--config", str(folder / "small.yaml"), "--augment", "none"]
    for side in ("train", "valid"):
        train += [f"--{side}.captions", captions, f"--{side}.images", images]
    towers = ["--image_tower.name", "test_resnet.r160_in1k", "--image_tower.weights", "none"]
    towers += ["--image_tower.image_size", "32", "--image_tower.resize", "36", "--image_tower.output", output]
    towers += ["--text_tower.name", text, "--text_tower.layers", "[1]"]
    source = ["--captions.captions", captions, "--captions.images", images, "--captions.split", "train,val"]
    return train, [*towers, *source]


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("output", "loss"), [("pooled", "paired_hinge"), ("grid", "info_nce")])
def test_banks_train_the_same_model_as_the_towers(ray_here, tmp_path: Path, image_folder, output, loss) -> None:
    train, source = prepared(tmp_path, image_folder, output, loss)
    assert train_xmatch.main([*train, "--output", str(tmp_path / "live")]) == 0
    banks = []
    for side in ("image", "text"):
        bank = tmp_path / side
        assert embed.main(["--side", f"{side}_features", *source, "--output", str(bank)]) == 0
        banks += ["--features" if side == "image" else "--text_features", str(bank / "shards")]
    assert train_xmatch.main([*train, *banks, "--output", str(tmp_path / "banks")]) == 0
    assert not (tmp_path / "banks" / "features").exists()
    np.testing.assert_allclose(curve(tmp_path / "banks"), curve(tmp_path / "live"), rtol=1e-5)
    models = [DualEncoder.from_pretrained(str(tmp_path / name / "model")) for name in ("live", "banks")]
    live, cached = (model.encode_texts(["the cat sat on the mat ."]) for model in models)
    np.testing.assert_allclose(live, cached, atol=1e-5)


@pytest.mark.ray
@pytest.mark.slow
def test_features_made_in_the_run_are_those_of_embed(ray_here, tmp_path: Path, image_folder) -> None:
    train, source = prepared(tmp_path, image_folder, "grid", "info_nce")
    here = ["--text_features", "compute", "--trainer.epochs", "1", "--augment", "flip"]
    assert train_xmatch.main([*train, *here, "--output", str(tmp_path / "run")]) == 0
    for side, kind, more in (("image", "features", ["--flip", "true"]), ("text", "text_features", [])):
        arguments = ["--side", f"{side}_features", *source, *more, "--output", str(tmp_path / side)]
        assert embed.main(arguments) == 0
        ours, theirs = (
            FeatureSets.from_bank(str(place / "shards")) for place in (tmp_path / side, tmp_path / "run" / kind)
        )
        assert sorted(ours.rows) == sorted(theirs.rows)
        for name, row in ours.rows.items():
            mine, other = ours.take(np.array([row])), theirs.take(np.array([theirs.rows[name]]))
            np.testing.assert_array_equal(mine.features, other.features)


@pytest.mark.ray
@pytest.mark.slow
def test_a_bank_of_another_tower_is_refused(ray_here, tmp_path: Path, image_folder, capsys) -> None:
    train, source = prepared(tmp_path, image_folder, "pooled", "info_nce")
    assert embed.main(["--side", "image_features", *source, "--output", str(tmp_path / "bank")]) == 0
    other = [*train, "--features", str(tmp_path / "bank" / "shards"), "--model.image.image_size", "64"]
    assert train_xmatch.main([*other, "--output", str(tmp_path / "run")]) == 2
    assert "another tower: model.image.image_size was 32 and is 64" in " ".join(capsys.readouterr().err.split())


@pytest.mark.ray
@pytest.mark.slow
def test_text_alone_gives_a_start_and_is_remembered(ray_here, tmp_path: Path, image_folder) -> None:
    """Pre-training on captions leaves out the images of a benchmark; what it saw stands beside the final model."""
    train, _ = prepared(tmp_path, image_folder, "pooled", "info_nce")
    captions = str(tmp_path / "c.json")
    small = ["--model.text.name", "null", "--model.text.trainable", "true", "--model.text.vocab_size", "80"]
    small += ["--model.text.hidden_size", "16", "--model.text.num_layers", "1", "--model.text.num_heads", "2"]
    text = [part for part in train if part != image_folder and not part.endswith(".images")]
    text += ["--recipe", "text_pairs", "--train.inputs", "text", "--valid.inputs", "text", "--train.split", "train"]
    text += ["--train.exclude", captions, "--train.exclude_split", "val", "--output", str(tmp_path / "text")]
    assert train_xmatch.main([*text, *small]) == 0
    start = ["--init_from", str(tmp_path / "text" / "model"), "--output", str(tmp_path / "run")]
    assert train_xmatch.main([*train, *small, *start]) == 0
    seen = read_seen(str(tmp_path / "run" / "model" / "training_data.parquet"))
    assert set(seen["role"].to_pylist()) == {"train", "text_pretraining"}
    vocabularies = [
        DualEncoder.from_pretrained(str(tmp_path / name / "model")).tokenizer.get_vocab() for name in ("text", "run")
    ]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_features": "compute", "model.text.trainable": "true"}, "frozen text tower"),
        ({"text_features": "compute", "size_augment.words": "0.2"}, "frozen text tower"),
        ({"augment": "flip", "model.image.trainable": "all"}, "frozen image tower"),
        ({"augment": "random_crop", "features": "bank"}, "cuts a new piece"),
        ({"train.inputs": "text"}, "without images"),
        ({"train.exclude": "x.json"}, "inputs=text"),
    ],
)
def test_caching_what_changes_is_refused_with_the_reason(tmp_path: Path, image_folder, capsys, change, message) -> None:
    train, _ = prepared(tmp_path, image_folder, "pooled", "info_nce")
    words = [word for name, value in change.items() for word in (f"--{name}", value)]
    assert train_xmatch.main([*train, *words, "--output", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_embed_says_what_each_side_needs(tmp_path: Path, capsys) -> None:
    assert embed.main(["--side", "text_features", "--output", str(tmp_path)]) == 2
    assert "--captions.captions" in capsys.readouterr().err
    assert embed.main(["--side", "image", "--output", str(tmp_path)]) == 2
    assert "needs --model" in capsys.readouterr().err
