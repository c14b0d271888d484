"""Entities, boxes and other photographs for the small captions of `small_models`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from small_models import CAPTIONS, tiny_config, tiny_vocabulary

from alignment.agree.losses import AgreeLossConfig
from alignment.agree.recipe import AgreeConfig, AgreeData, AgreeRecipe
from alignment.agree.slots import EntityConfig
from alignment.entities.entity_tables import (
    Box,
    CaptionEntities,
    Entity,
    box_table,
    entity_table,
    write_boxes,
    write_entities,
)
from xmatch.data.captions import CaptionSet
from xmatch.data.epoch_order import epoch_indices
from xmatch.models.checkpoints import read_config
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.dual_encoder_recipe import RecipeConfig, RecipeData
from xmatch.training.recipe import SampleKey
from xmatch.training.samples import write_samples
from xmatch.training.step import StepConfig, Stepper

PHRASES = ("the cat sat on the mat", "the cat", "the mat", "cat", "mat", "a dog", "dog", "world", "big", "red")
"""The first has six words; entities of the captions are those of them that they hold, longest first."""
LETTERS = "abcdefghijkl"


def small_captions(images: str) -> CaptionSet:
    """Two captions for each of twelve images; every fifth holds no entity."""
    texts = [CAPTIONS[i % 4].capitalize() if i % 5 else "it is ." for i in range(24)]
    names = [f"{letter}.jpg" for letter in LETTERS]
    owners = np.repeat(np.arange(12), 2)
    return CaptionSet(names, [f"{images}/{name}" for name in names], texts, [f"c{i}" for i in range(24)], owners)


def entities_of(caption: str) -> tuple[Entity, ...]:
    """The phrases of a caption in any case."""
    found = []
    for phrase in PHRASES:
        match = re.search(rf"\b{phrase}\b", caption, re.IGNORECASE)
        if match:
            found.append(Entity(match[0], *match.span()))
    return tuple(found)


def rows_of(captions: CaptionSet) -> list[CaptionEntities]:
    """The rows of a table of entities."""
    images = [captions.image_ids[at] for at in captions.caption_image]
    return [
        CaptionEntities(name, image, text, entities_of(text))
        for name, image, text in zip(captions.caption_ids, images, captions.captions, strict=True)
    ]


def write_data(folder: Path, images: str) -> AgreeData:
    """Tables of entities and boxes, and other photographs, in a folder."""
    captions = small_captions(images)
    write_entities(str(folder / "entities.parquet"), entity_table(rows_of(captions)))
    boxes = [Box(f"{a}.jpg", "the cat", "grounding", 0.0, 0.0, 0.5, 0.5, 0.9) for a in "abcdef"]
    boxes += [Box(f"{a}.jpg", "cat", "grounding", 0.5, 0.5, 1.0, 1.0, 0.9) for a in "aceg"]
    boxes += [Box(f"{a}.jpg", "dog", "objects", 0.1, 0.1, 1.0, 1.0, 0.9) for a in "abgh"]
    boxes += [Box(f"{a}", "dog", "visual_genome", 0.2, 0.2, 0.9, 0.9, 1.0) for a in "abz"]
    boxes += [Box(f"{a}", "mat", "visual_genome", 0.0, 0.0, 0.7, 1.0, 1.0) for a in "cd"]
    boxes += [Box("a", "dog", "visual_genome", 0.0, 0.9, 1.0, 1.0, 1.0)]
    write_boxes(str(folder / "boxes.parquet"), box_table(boxes))
    return AgreeData(
        entities=str(folder / "entities.parquet"), boxes=str(folder / "boxes.parquet"), object_photos=images
    )


def small_recipe(
    folder: Path,
    images: str,
    *,
    losses: AgreeLossConfig | None = None,
    entity: EntityConfig | None = None,
    dropout: float = 0.0,
    crops: bool = True,
    start: str = "",
) -> AgreeRecipe:
    """A recipe over the small captions, with all losses; `start` names a saved model to go on from as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_data(folder, images)
    for split in ("train", "valid"):
        write_samples(small_captions(images), str(folder / split))
    text = TextTowerConfig(
        name=None, trainable=True, hidden_size=16, num_layers=1, num_heads=2, layers=(1,), dropout=dropout
    )
    model = read_config(start, DualEncoderConfig) if start else tiny_config(text=text)
    config = AgreeConfig(
        matching=RecipeConfig(model=model, crops=crops, gradient_checkpointing=bool(start)),
        losses=losses or AgreeLossConfig(),
        entity=entity or EntityConfig(),
        as_saved=bool(start),
    )
    samples = RecipeData(train=str(folder / "train"), valid=str(folder / "valid"), init_from=start)
    return AgreeRecipe(config, tiny_vocabulary(), samples, data)


Found = tuple[float, dict[str, float], dict[str, torch.Tensor]]


def first_step(folder: Path, images: str, batch_size: int, rank: int, world: int, step: StepConfig) -> Found:
    """Loss, its parts and the gradients of the first step of an epoch, as a worker computes it, with dropout."""
    recipe = small_recipe(folder / f"{rank}-of-{world}-{step.cached_rows}", images, dropout=0.3)
    torch.manual_seed(0)
    model = recipe.build_model()
    indices = epoch_indices(24, seed=3, epoch=0, worker_rank=rank, world_size=world, batch_size=batch_size)[0]
    real = indices[indices >= 0]
    samples = np.resize(real if len(real) else [0], len(indices)).astype(np.int64)
    outcome = Stepper(recipe, model, step).backward(
        recipe.batch(samples, SampleKey(3, 0)),
        torch.from_numpy(np.arange(len(indices)) < len(real)),
        samples=torch.from_numpy(samples),
        epoch=0,
        seed=11,
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outcome.loss.item(), {name: value.item() for name, value in outcome.parts.items()}, gradients


def first_steps(given: tuple[Path, str, list[tuple[int, StepConfig]]], rank: int, world: int) -> list[Found]:
    """`first_step` of every case."""
    folder, images, cases = given
    return [first_step(folder / str(size), images, size, rank, world, step) for size, step in cases]
