"""Concept-level alignment (LCA): a word learns the prototypes of the region it is nearest to.

Shapes: B pairs, K regions, L words, P prototypes, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from alignment.selfalign.sinkhorn import soft_assignments
from xmatch.models.heads import normalise


class Prototypes(nn.Module):
    """P concepts as unit vectors of width D; only training needs them.

    The rows are brought to unit length where they stand, whenever they are used, so that the gradient is that of a
    free vector, as the original's is.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())

    def forward(self) -> torch.Tensor:
        """(P, D) unit rows."""
        with torch.no_grad():
            self.weight.copy_(normalise(self.weight))
        return self.weight


class Concepts(NamedTuple):
    """What the loss needs of each pair; nothing in it depends on other pairs.

    regions (B, K, P): scores of regions with prototypes, no gradient; region_mask (B, K) bool; words (B, L, P): scores
    of words with prototypes; word_mask (B, L) bool; nearest (B, L) int64: the region each word is nearest to.
    """

    regions: torch.Tensor
    region_mask: torch.Tensor
    words: torch.Tensor
    word_mask: torch.Tensor
    nearest: torch.Tensor


def concepts_of(
    regions: torch.Tensor,
    region_mask: torch.Tensor,
    words: torch.Tensor,
    word_mask: torch.Tensor,
    prototypes: torch.Tensor,
) -> Concepts:
    """Scores with the prototypes, and which region each word is nearest to.

    Gradients reach words and prototypes alone, never the regions: these teach.

    Args:
        regions: (B, K, D) unit vectors of regions, before any reasoning.
        region_mask: (B, K) bool.
        words: (B, L, D) unit vectors, likewise.
        word_mask: (B, L) bool.
        prototypes: (P, D) unit rows.
    """
    with torch.autocast(words.device.type, enabled=False):
        students = words.float()
        with torch.no_grad():
            teachers = regions.float()
            likeness = torch.einsum("bld,bkd->blk", students, teachers).masked_fill(~region_mask[:, None], -torch.inf)
            taught = teachers @ prototypes.T
        return Concepts(taught, region_mask, students @ prototypes.T, word_mask, likeness.argmax(-1))


def concept_loss(concepts: Concepts, *, student_temperature: float, epsilon: float, iterations: int) -> torch.Tensor:
    """Cross-entropy of each word with its region's soft assignment (SelfAlign; golden `selfalign`, lca).

    Args:
        concepts: regions (B, K, P) and words (B, L, P) of all pairs, those of other workers included: the assignments
            are balanced over all their regions.
        student_temperature: divides the words' scores.
        epsilon: temperature of the assignments.
        iterations: of Sinkhorn.

    Returns:
        The mean over pairs of the mean over their real words, a scalar.
    """
    rows = soft_assignments(concepts.regions[concepts.region_mask], epsilon=epsilon, iterations=iterations)
    shape = concepts.regions.shape
    assigned = rows.new_zeros(shape).index_put((concepts.region_mask,), rows)
    targets = assigned.gather(1, concepts.nearest[..., None].expand(-1, -1, shape[-1]))
    terms = -(targets * F.log_softmax(concepts.words / student_temperature, dim=-1)).sum(-1)
    counts = concepts.word_mask.sum(1).clamp_min(1).to(terms.dtype)
    return (terms.masked_fill(~concepts.word_mask, 0.0).sum(1) / counts).mean()
