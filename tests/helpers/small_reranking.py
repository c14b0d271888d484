"""A small captioned set with entities: two splits, vectors of images, captions, prompts and masked captions, boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small_models import make_images

from alignment.entities.entity_tables import (
    Box,
    CaptionEntities,
    Entity,
    box_table,
    entity_table,
    write_boxes,
    write_entities,
)
from alignment.entities.prompts import masked_id, prompt_id
from alignment.rerank.candidates import EMPTY
from alignment.rerank.entity_slots import EntitySlots, VectorRows
from xmatch.data.vectors import make_vectors, write_vectors

SPLITS = {"val": "abcdef", "test": "ghijkl"}
EACH, WIDTH = 3, 8


def make_world(folder: Path, seed: int = 0) -> Path:
    """Write everything into a folder; captions 0, 1, 2 … have 0, 1, 2, 3, 0, 1 … entities."""
    make_images(folder, 12)
    rng = np.random.default_rng(seed)
    letters = "".join(SPLITS.values())
    images = unit(rng.standard_normal((12, WIDTH)))
    owners = np.repeat(np.arange(12), EACH)
    texts = unit(images[owners] + 0.7 * rng.standard_normal((12 * EACH, WIDTH)))
    entries, rows, boxes = [], [], []
    for at, letter in enumerate(letters):
        split = next(name for name, own in SPLITS.items() if letter in own)
        sentences = []
        for caption in range(EACH * at, EACH * (at + 1)):
            text = f"The dog <{letter}> near a red ball on grass {caption}"
            sentences.append({"raw": text, "sentid": caption})
            rows.append(CaptionEntities(str(caption), letter, text, spans(text, caption % 4)))
        entries.append({"filename": f"{letter}.jpg", "split": split, "sentences": sentences})
        boxes.append(Box(letter, "the dog", "grounding", 0.1, 0.2, 0.5, 0.9, 0.75))
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    write_entities(str(folder / "entities.parquet"), entity_table(rows))
    write_boxes(str(folder / "boxes.parquet"), box_table(boxes))
    write_vectors(str(folder / "images.arrow"), make_vectors(list(letters), images))
    write_vectors(str(folder / "texts.arrow"), make_vectors([row.caption_id for row in rows], texts))
    write_vectors(str(folder / "bare.arrow"), make_vectors(["bare_text"], unit(rng.standard_normal((1, WIDTH)))))
    for name, make_id in (("prompts", prompt_id), ("masks", masked_id)):
        groups = [row.caption_id for row in rows for _ in row.entities]
        ids = [make_id(row.caption_id, at) for row in rows for at in range(len(row.entities))]
        near = np.array([int(group) // EACH for group in groups])
        sign = 1.0 if name == "prompts" else -0.5
        vectors = unit(sign * images[near] + 0.5 * rng.standard_normal((len(ids), WIDTH)))
        write_vectors(str(folder / f"{name}.arrow"), make_vectors(ids, vectors, groups=groups))
    return folder


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def spans(text: str, count: int) -> tuple[Entity, ...]:
    """The first entities of a caption of `make_world`."""
    found = []
    for phrase in ("The dog", "a red ball", "grass")[:count]:
        start = text.index(phrase)
        found.append(Entity(phrase, start, start + len(phrase)))
    return tuple(found)


def slots_of(prompts: np.ndarray, masks: np.ndarray, counts: np.ndarray | None = None) -> EntitySlots:
    """Of (M, S, D) vectors; the first `counts` of each caption are there."""
    captions, size, width = prompts.shape
    rows = np.arange(captions * size).reshape(captions, size)
    if counts is not None:
        rows = np.where(np.arange(size) < counts[:, None], rows, EMPTY)
    return EntitySlots(*(VectorRows([one.reshape(-1, width)]) for one in (prompts, masks)), rows, rows.copy())


def random_case(seed: int, captions: int = 8, images: int = 6, size: int = 3, width: int = 5) -> tuple:
    """Unit vectors of images, captions, prompts and masked captions (M, S, D), and the generator they came from."""
    rng = np.random.default_rng(seed)

    def vectors(*shape: int) -> np.ndarray:
        found = rng.standard_normal((*shape, width)).astype(np.float32)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    return vectors(images), vectors(captions), vectors(captions, size), vectors(captions, size), rng
