"""The losses a dual encoder can be trained with, by name: which embeddings each needs, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from xmatch.errors import InputError
from xmatch.training import losses


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and its numbers."""

    name: Literal[
        "paired_hinge", "sentence_paired_hinge", "batchwise_hinge", "info_nce", "sigmoid", "hardest_triplet"
    ] = "paired_hinge"
    """`paired_hinge`: Vokenization's, per token. `sentence_paired_hinge`: Maria's. The others take all images of the
    batch as negatives, except other captions' copies of the same image: `batchwise_hinge` all of them,
    `hardest_triplet` the hardest (VSE++, VSE-infinity), `info_nce` CLIP's, `sigmoid` SigLIP's."""
    margin: float = 0.5
    """Margin of the hinge losses; VSE++ and VSE-infinity use 0.2."""
    reduction: Literal["mean", "sum"] = "mean"
    """`sum`: over the batch as Maria, VSE++ and VSE-infinity do, so that it grows with the batch."""
    warmup_epochs: int = 0
    """`hardest_triplet`: epochs at the start in which all negatives count (VSE-infinity: 1)."""
    negatives: Literal["global", "local"] = "global"
    """`global`: the rows of all workers. `local`: each worker's own rows, as Vokenization and Maria train."""
    same_image: Literal["excluded", "negative"] = "excluded"
    """`negative`: captions of one image are each other's negatives, as in the originals."""


class Scored(NamedTuple):
    """What a loss is computed from.

    text (B, D) or (B, L, D), image (B, D) or (B, V, D) of V views, mask (B, L) of real tokens, same_image (B, B) bool
    with a true diagonal, logit_scale and logit_bias scalars, epoch 0-based.
    """

    text: torch.Tensor
    image: torch.Tensor
    mask: torch.Tensor
    same_image: torch.Tensor
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor
    epoch: int


class Objective(NamedTuple):
    """A loss: the level of the text embeddings it takes, the scalars it learns, and the function."""

    level: Literal["token", "sentence"]
    learns: tuple[str, ...]
    loss: Callable[[Scored, LossConfig], torch.Tensor]


def _hardest(given: Scored, config: LossConfig) -> torch.Tensor:
    """The hinge of text (B, D) and image (B, D) or (B, V, D): over all negatives while warming up, then the hardest."""
    chosen = losses.all_negatives_hinge if given.epoch < config.warmup_epochs else losses.hardest_triplet
    return chosen(given.text, given.image, config.margin, given.same_image, config.reduction)


OBJECTIVES: dict[str, Objective] = {
    "paired_hinge": Objective(
        "token", (), lambda x, config: losses.paired_hinge(x.text, x.image, x.mask, config.margin)
    ),
    "sentence_paired_hinge": Objective(
        "sentence",
        (),
        lambda x, config: losses.sentence_paired_hinge(x.text, x.image, config.margin, reduction=config.reduction),
    ),
    "batchwise_hinge": Objective(
        "sentence",
        (),
        lambda x, config: losses.all_negatives_hinge(x.text, x.image, config.margin, x.same_image, config.reduction),
    ),
    "hardest_triplet": Objective("sentence", (), _hardest),
    "info_nce": Objective(
        "sentence", ("logit_scale",), lambda x, _: losses.info_nce(x.text, x.image, x.logit_scale, x.same_image)
    ),
    "sigmoid": Objective(
        "sentence",
        ("logit_scale", "logit_bias"),
        lambda x, _: losses.sigmoid_pairs(x.text, x.image, x.logit_scale, x.logit_bias, x.same_image),
    ),
}


def objective(name: str) -> Objective:
    """The loss called `name`."""
    if name not in OBJECTIVES:
        raise InputError(f"unknown loss {name!r}; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def same_rows(image_row: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """(B, B) bool: pairs that are no negatives, from the image of each row (B,)."""
    if config.same_image == "negative":
        return torch.eye(len(image_row), dtype=torch.bool, device=image_row.device)
    return image_row[:, None] == image_row[None, :]
