"""What is done to the members of padded sets, and to them alone.

Shapes: B batch, K positions of the padded set, D width. A mask is (B, K) bool, true for members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from xmatch.models.heads import normalise


class Masks(NamedTuple):
    """Which positions of padded sets are real, and which take part in attention, means, norms and batch statistics.

    Both (B, K) bool. They differ only where a model lets padding take part, as the originals of CAMERA do.
    """

    real: torch.Tensor
    counted: torch.Tensor


def masks_of(mask: torch.Tensor, *, padding_counts: bool) -> Masks:
    """The masks of sets whose real members `mask` (B, K) marks, in whatever number format."""
    real = mask.bool()
    return Masks(real, torch.ones_like(real) if padding_counts else real)


def clean(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, K, D) with zeros on padding, whatever stood there."""
    return vectors.masked_fill(~mask[..., None], 0.0)


def on_members(
    function: Callable[[torch.Tensor], torch.Tensor], vectors: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """A function of rows, such as a BatchNorm, on the members alone; zeros on padding.

    Args:
        function: (N, D) to (N, E).
        vectors: (B, K, D).
        mask: (B, K).

    Returns:
        (B, K, E).
    """
    if bool(mask.all()):
        every: torch.Tensor = function(vectors.reshape(-1, vectors.shape[-1]))
        return every.reshape(*mask.shape, -1)
    rows = function(vectors[mask])
    return rows.new_zeros((*mask.shape, rows.shape[-1])).index_put((mask,), rows)


def normalise_members(vectors: torch.Tensor, mask: torch.Tensor, *, across_members: bool) -> torch.Tensor:
    """Members brought to unit length; zeros on padding.

    Args:
        vectors: (B, K, D).
        mask: (B, K).
        across_members: divide each dimension by its norm over the members instead, as the originals of VSRN, CAMERA
            and SelfAlign do.
    """
    kept = clean(vectors, mask)
    return normalise(kept.transpose(1, 2)).transpose(1, 2) if across_members else normalise(kept)


def members_first(mask: torch.Tensor) -> torch.Tensor:
    """(B, K) places in the order that puts the members first, each kind in its own order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)


def take_places(vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Row b, place k of the result is `vectors[b, places[b, k]]`: (B, K, D) and (B, K) to (B, K, D)."""
    return vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[-1]))


def put_back(vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Undo `take_places` with the same places: (B, K, D) and (B, K) to (B, K, D)."""
    return take_places(vectors, torch.argsort(places, dim=1))
