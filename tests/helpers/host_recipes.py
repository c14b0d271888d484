"""Recipes of VSRN and CAMERA in small, on random regions with boxes, and steps of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import CAPTIONS

from xmatch.data.words import build_vocabulary, wrap_words
from xmatch.models.context.config import ContextConfig
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.objectives import LossConfig
from xmatch.training.recipe import SampleKey
from xmatch.training.samples import CaptionsConfig, read_split, write_samples
from xmatch.training.side_losses import SideLossConfig
from xmatch.training.step import StepConfig, Stepper

WIDTH = 6
"""Numbers of a region's features."""
TEXTS = [f"{text} number {n}" for n in range(8) for text in CAPTIONS]


def write_regions(folder: Path, images: int, *, members: int = 4, width: int = WIDTH, has_boxes: bool = True) -> str:
    """A precomputed tree of `images` images with a caption each, splits `train` and `dev` alike; its folder."""
    draw = np.random.default_rng(images)
    features = draw.normal(size=(images, members, width)).astype(np.float32)
    corners = np.sort(draw.uniform(0, 100, size=(images, members, 2, 2)), axis=2)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        np.save(folder / f"{split}_ims.npy", features)
        if has_boxes:
            np.save(folder / f"{split}_boxes.npy", corners.reshape(images, members, 4).astype(np.float32))
            np.save(folder / f"{split}_img_sizes.npy", np.full((images, 2), 100.0, np.float32))
        lines = [TEXTS[i % len(TEXTS)] + f" {i // len(TEXTS)}" for i in range(images)]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in range(images)))
    return str(folder)


def vsrn_config(dim: int = 8, **changes: Any) -> DualEncoderConfig:
    """VSRN in small."""
    settings = {
        "dim": dim,
        "pooling": "last",
        "image_pooling": "gru",
        "image": ImageTowerConfig(kind="regions", output="grid", width=WIDTH),
        "image_head": HeadConfig(kind="fc"),
        "image_context": ContextConfig(kind="gcn", layers=4, normalise_before=True, normalise_after=True),
        "text": TextTowerConfig(
            kind="gru", name=None, layers=(1,), trainable=True, hidden_size=dim, word_dim=6, max_len=60
        ),
        "text_head": HeadConfig(kind="identity"),
    }
    return DualEncoderConfig(**(settings | changes))


def camera_config(dim: int = 8, **changes: Any) -> DualEncoderConfig:
    """CAMERA in small, with a recurrent tower in BERT's place."""
    image = ContextConfig(kind="gated_attention", heads=2, positions=True, normalise_before=True, normalise_after=True)
    settings = {
        "image_pooling": "views",
        "views": 3,
        "pooling": "mean",
        "image_context": image,
        "text_head": HeadConfig(kind="projection_bias"),
        "text_context": ContextConfig(kind="gated_attention", heads=2, feed_forward=True),
    }
    return vsrn_config(dim, **(settings | changes))


HARDEST = LossConfig(name="hardest_triplet", margin=0.2, reduction="sum", same_image="negative")


def recipe_in(
    folder: Path,
    model: DualEncoderConfig,
    side: SideLossConfig,
    images: int = 12,
    loss: LossConfig = HARDEST,
    **changes: Any,
):
    """A recipe on random regions, its model not yet built."""
    tree = folder / "tree"
    if not tree.exists():
        write_regions(tree, images, width=model.image.width, **changes)
    for split in ("train", "dev"):
        config = CaptionsConfig(captions=str(tree), split=split, inputs="regions")
        write_samples(read_split(config), str(folder / split), config)
    tokenizer = wrap_words(build_vocabulary(read_split(config).captions, 1), mask=False)
    data = RecipeData(train=str(folder / "train"), valid=str(folder / "dev"))
    return DualEncoderRecipe(RecipeConfig(model=model, loss=loss, side_losses=side), tokenizer, data)


def without_batch_norm(config: DualEncoderConfig) -> DualEncoderConfig:
    """The same without what normalises by a worker's own batch."""
    return replace(config, image_context=ContextConfig(normalise_after=True), text_context=ContextConfig(kind="gru"))


def one_step(folder: str, rank: int, world: int) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, its parts and gradients of a step of CAMERA's losses and VSRN's writing on twelve samples."""
    side = SideLossConfig(
        caption_generation=1.0, diversity=0.3, caption_hidden=5, caption_word_dim=4, caption_dropout=0.3
    )
    own = Path(folder) / f"{rank}-{world}"
    recipe = recipe_in(own, without_batch_norm(camera_config()), side)
    torch.manual_seed(1)
    model = recipe.build_model()
    assert isinstance(model, DualEncoder)
    indices = np.arange(rank, 12, world)
    outcome = Stepper(recipe, model, StepConfig()).backward(
        recipe.batch(indices, SampleKey(3, 0)),
        torch.ones(len(indices), dtype=torch.bool),
        samples=torch.from_numpy(indices),
        epoch=0,
        seed=5,
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(outcome.loss), {name: float(value) for name, value in outcome.parts.items()}, gradients
