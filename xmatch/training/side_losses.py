"""Losses beside the matching of a dual encoder: captions written from its regions, views that differ.

What they need of a sample is one number, which travels as a row of `embed`, so that several workers see what one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.parts import ImageParts
from xmatch.training.caption_generation import CaptionGenerator
from xmatch.training.recipe import Rows

GENERATOR = "caption_generator"
"""Name of the writer among a model's training-only modules."""


@dataclass(frozen=True, kw_only=True)
class SideLossConfig:
    """Weights of the losses beside the matching one, 0 for off, and their numbers."""

    caption_generation: float = 0.0
    """Weight of writing each caption from its image's regions (VSRN: 1). The sum over a caption's words, averaged over
    captions."""
    diversity: float = 0.0
    """Weight of views that look at different regions (CAMERA: 0.01); needs model.image_pooling=views. Summed or
    averaged over captions as `loss.reduction` says."""
    caption_hidden: int = 512
    """Width of the networks that read regions and write captions."""
    caption_word_dim: int = 300
    """Width of their word embeddings."""
    caption_dropout: float = 0.2
    """Dropout on what they read."""

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        if self.caption_generation < 0 or self.diversity < 0:
            raise InputError(
                f"side_losses are weights, not negative; got {self.caption_generation} and {self.diversity}."
            )

    @property
    def weights(self) -> dict[str, float]:
        """The losses in use and their weights."""
        all_weights = {"caption_generation": self.caption_generation, "diversity": self.diversity}
        return {name: weight for name, weight in all_weights.items() if weight}


def view_diversity(scores: torch.Tensor) -> torch.Tensor:
    """How alike the views of an image are: ||S^T S - I||^2 with each view's scores at unit length.

    Args:
        scores: (B, K, V) of regions in views, before the softmax, zero on padding (CAMERA, equation 13; golden
            `vse_losses.json`, diversity).

    Returns:
        (B,).
    """
    unit = torch.nn.functional.normalize(scores, dim=1)
    likeness = unit.transpose(1, 2) @ unit
    return (likeness - torch.eye(scores.shape[-1], device=scores.device)).square().sum((1, 2))


def add_modules(model: DualEncoder, config: SideLossConfig) -> None:
    """Give a model what its side losses learn; random numbers come from torch's current seed.

    Raises:
        InputError: the model cannot have such a loss.
    """
    if config.diversity and model.config.image_pooling != "views":
        raise InputError(
            f"side_losses.diversity compares the views of an image, but model.image_pooling is "
            f"{model.config.image_pooling!r}; set it to views, or the weight to 0."
        )
    if not config.caption_generation:
        return
    if not model.image_tower.gives_sets:
        raise InputError(
            "side_losses.caption_generation writes captions from regions or cells, but the image tower gives one "
            "vector an image: set model.image.output=grid, or the weight to 0."
        )
    model.training_only[GENERATOR] = CaptionGenerator(
        model.config.dim,
        len(model.tokenizer),
        hidden=config.caption_hidden,
        word_dim=config.caption_word_dim,
        dropout=config.caption_dropout,
    )


def side_rows(model: DualEncoder, batch: Rows, image: ImageParts, config: SideLossConfig) -> dict[str, torch.Tensor]:
    """What the side losses in use need of each sample, by name, of shape (B,) each."""
    rows = {}
    if config.diversity:
        assert image.view_scores is not None, "add_modules has seen that there are views"
        rows["diversity"] = view_diversity(image.view_scores.float())
    if config.caption_generation:
        ids, mask, with_padding = batch["text"], batch["text_mask"], model.config.legacy_padding
        if with_padding and ids.shape[1] < model.config.text.max_len:  # the original pads beyond the longest
            ids = torch.nn.functional.pad(ids, (0, 1), value=int(model.tokenizer.pad_token_id or 0))
            mask = torch.nn.functional.pad(mask, (0, 1))
        generator = model.training_only[GENERATOR]
        rows["caption_generation"] = generator(image.members, image.mask, ids, mask, with_padding=with_padding)
    return rows


def side_losses(
    rows: Mapping[str, torch.Tensor], config: SideLossConfig, reduction: Literal["mean", "sum"]
) -> dict[str, torch.Tensor]:
    """Scalars of the losses in use, not yet weighted, over all rows given.

    Args:
        rows: of `side_rows`, of shape (B,) each.
        config: which are in use.
        reduction: of the matching loss; `sum` sums `diversity` too, while writing is averaged either way.
    """
    found = {name: rows[name].mean() for name in config.weights}
    if reduction == "sum" and "diversity" in found:
        found["diversity"] = rows["diversity"].sum()
    return found
