"""The losses of SelfAlign on a batch: what each pair brings along, and the losses of all pairs.

A pair's rows depend on the pair alone, so those of all workers, gathered, are those of one worker with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from alignment.selfalign.concept import Concepts, concept_loss, concepts_of
from alignment.selfalign.config import CONCEPT, CONTEXT, SelfAlignConfig
from alignment.selfalign.context import context_loss
from xmatch.models.context_head import Context
from xmatch.models.heads import normalise


class Side(NamedTuple):
    """Images or captions of a batch as the losses take them.

    early (B, N, D): the parts before any reasoning; mask (B, N) bool; context: of the side's context head, None where
    the model has none; context_mask (B, N) bool: the parts that count there.
    """

    early: torch.Tensor
    mask: torch.Tensor
    context: Context | None
    context_mask: torch.Tensor


def aligned_rows(
    image: Side, text: Side, prototypes: torch.Tensor | None, config: SelfAlignConfig
) -> dict[str, torch.Tensor]:
    """What the losses in use need of each pair, by name, a row a pair.

    Args:
        image: regions, cells or patches.
        text: words.
        prototypes: (P, D) unit rows; None where the concept loss is off.
        config: which losses are in use.
    """
    rows: dict[str, torch.Tensor] = {}
    if config.concept and prototypes is not None:
        regions, words = normalise(image.early.float()), normalise(text.early.float())
        found = concepts_of(regions, image.mask, words, text.mask, prototypes)
        rows |= {f"{CONCEPT}_{name}": value for name, value in found._asdict().items()}
    if config.context:
        for name, side in (("image", image), ("text", text)):
            assert side.context is not None
            parts = {"guide": side.context.guide.float(), "parts": side.context.locals.float()}
            rows |= {f"{CONTEXT}_{name}_{part}": value for part, value in parts.items()}
            rows[f"{CONTEXT}_{name}_mask"] = side.context_mask
    return rows


def aligned_losses(
    rows: Mapping[str, torch.Tensor], same_image: torch.Tensor, config: SelfAlignConfig
) -> dict[str, torch.Tensor]:
    """The losses in use, each a scalar without its weight.

    Args:
        rows: of `aligned_rows`, of all pairs that are each other's negatives; others are ignored.
        same_image: (B, B) bool with a true diagonal; pairs that are no negatives.
        config: which losses, and their numbers.
    """
    values: dict[str, torch.Tensor] = {}
    if config.concept:
        concepts = Concepts(*(rows[f"{CONCEPT}_{name}"] for name in Concepts._fields))
        values[CONCEPT] = concept_loss(
            concepts,
            student_temperature=config.student_temperature,
            epsilon=config.epsilon,
            iterations=config.iterations,
        )
    if config.context:
        to_words = _context(rows, same_image, config, guide="image", parts="text")
        to_regions = _context(rows, same_image, config, guide="text", parts="image")
        values[CONTEXT] = (to_words + to_regions) / 2
    return values


def _context(
    rows: Mapping[str, torch.Tensor], same_image: torch.Tensor, config: SelfAlignConfig, *, guide: str, parts: str
) -> torch.Tensor:
    """The context loss of guides (B, D) of one side and parts (B, N, D) of the other."""
    return context_loss(
        rows[f"{CONTEXT}_{guide}_guide"],
        rows[f"{CONTEXT}_{parts}_parts"],
        rows[f"{CONTEXT}_{parts}_mask"],
        same_image,
        temperature=config.image_temperature if guide == "image" else config.text_temperature,
        negatives=config.negatives,
        legacy_negatives=config.legacy_negatives,
    )
