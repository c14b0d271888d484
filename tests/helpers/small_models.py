"""Tiny models, images, captions and tokenizers, made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from xmatch.data.tokenizers import wrap_wordpiece
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = ("the cat sat on the mat .", "hello world !", "a dog ran , running .", "it is big and red")


def golden(name: str) -> dict:
    """A golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tiny_vocabulary():
    """The golden cases' WordPiece tokenizer: ids are positions in its vocabulary, text is lower-cased."""
    vocabulary = {word: i for i, word in enumerate(golden("tokenization")["vocab"])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap_wordpiece(core)


def tiny_config(**changes) -> DualEncoderConfig:
    """A dual encoder small enough to train in a test."""
    settings = {
        "dim": 8,
        "pooling": "mean",
        "image": ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=32, resize=36),
        "text": TextTowerConfig(name=None, trainable=True, hidden_size=16, num_layers=2, num_heads=2, layers=(2, 1)),
        "image_head": HeadConfig(kind="vokenization", hidden=12),
        "text_head": HeadConfig(kind="vokenization", hidden=12),
    }
    return DualEncoderConfig(**(settings | changes))


def tiny_model_object(**changes) -> DualEncoder:
    """A dual encoder with seeded random weights."""
    torch.manual_seed(0)
    return DualEncoder.from_config(tiny_config(**changes), tiny_vocabulary()).eval()


def save_tiny_model(folder: Path) -> str:
    """Save a tiny dual encoder; its folder."""
    tiny_model_object().save_pretrained(str(folder))
    return str(folder)


def make_images(folder: Path, count: int = 12) -> str:
    """Small distinct JPEGs named a.jpg, b.jpg, …; their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(folder / f"{chr(97 + number)}.jpg")
    return str(folder)


def karpathy_json(path: Path, names: dict[str, list[str]]) -> str:
    """A Karpathy caption file: names maps a split to its image file names, two captions each."""
    images = []
    for split, files in names.items():
        for name in files:
            first = len(images) * 2
            texts = [CAPTIONS[first % 4], f"{CAPTIONS[(first + 1) % 4]} a {name[0]}"]
            sentences = [{"raw": text, "sentid": first + i} for i, text in enumerate(texts)]
            images.append({"filename": name, "split": split, "sentences": sentences})
    path.write_text(json.dumps({"images": images}))
    return str(path)
