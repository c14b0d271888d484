"""Which of a detector's candidates become regions: the best that do not overlap, at least and at most so many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torchvision.ops import nms

from xmatch.errors import InputError

OVERLAP_STEP = 0.1


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How many regions an image has, and which."""

    min_regions: int = 10
    """At least so many: where fewer candidates stay, more overlap is allowed, then candidates are taken twice."""
    max_regions: int = 50
    """At most so many, the best."""
    threshold: float = 0.2
    """Score of the detector that a region beyond the first min_regions must have."""
    overlap: float = 0.3
    """Largest overlap (intersection over union) of two regions; raised in steps of 0.1 up to 0.9 while fewer than
    min_regions stay, as Maria's detector does."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        if not 1 <= self.min_regions <= self.max_regions:
            raise InputError(
                f"min_regions is from 1 to max_regions; got {self.min_regions} and {self.max_regions} regions."
            )
        if not 0 <= self.threshold <= 1 or not 0 < self.overlap <= 1:
            raise InputError("threshold is between 0 and 1, overlap above 0 and at most 1.")


class Candidates(NamedTuple):
    """What a detector proposes for one image.

    boxes: (P, 4) float32, x1, y1, x2, y2 in pixels of the image. scores: (P,) float32, between 0 and 1.
    labels: (P,) int64. features: (P, C) float32.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor


class Selected(NamedTuple):
    """The regions, best first, and how many of them are there twice."""

    regions: Candidates
    repeated: int


def select(found: Candidates, config: SelectionConfig) -> Selected:
    """The regions of an image; equal scores in the detector's order.

    Args:
        found: candidates; those without area are none.
        config: how many, and which.

    Returns:
        min_regions to max_regions of them; nothing where there is no candidate.
    """
    has_area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
    order = torch.sort(found.scores[has_area], descending=True, stable=True).indices
    found = Candidates(*(part[has_area][order] for part in found))
    kept = _apart(found, config)
    is_sure = (torch.arange(len(kept)) < config.min_regions) | (found.scores[kept] >= config.threshold)
    kept = kept[is_sure]
    repeated = max(0, config.min_regions - len(kept)) if len(kept) else 0
    kept = torch.cat([kept, kept.repeat(config.min_regions)[:repeated]])
    return Selected(Candidates(*(part[kept] for part in found)), repeated)


def _apart(found: Candidates, config: SelectionConfig) -> torch.Tensor:
    """Places, of shape (K,), of candidates that overlap no better one too much, ascending; found is sorted by score."""
    overlap = config.overlap
    while overlap < 1:
        kept: torch.Tensor = nms(found.boxes, found.scores, overlap).sort().values[: config.max_regions]
        if len(kept) >= config.min_regions or len(kept) == len(found.scores):
            return kept
        overlap = round(overlap + OVERLAP_STEP, 6)
    return torch.arange(min(len(found.scores), config.max_regions))
