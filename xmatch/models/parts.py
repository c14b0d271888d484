"""What a dual encoder makes of a set on its way to the final vectors, for losses that look at more than these.

Shapes: B batch, K regions or cells, L tokens, D the shared space, V views, E the width of the final vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from xmatch.models.context_head import Context
from xmatch.models.heads import normalise

CONTEXT_SHARE = 0.5
"""Weight of the image's two context blocks; a caption's have weight 1."""
BLOCKS = 3
"""Blocks of a final vector with context: the host's own, and two of its context."""


class ImageParts(NamedTuple):
    """The image side.

    projected (B, K, D): what the head gives, after the normalisation of the input. states (B, K, D): after reasoning.
    view_scores (B, K, V): how much each region counts in each view, before the softmax; None without views. context:
    None without a context head. embeddings (B, E) or (B, V, E). mask (B, K) bool: what takes part. members (B, K, D):
    what is pooled, states after their normalisation.
    """

    projected: torch.Tensor
    states: torch.Tensor
    view_scores: torch.Tensor | None
    context: Context | None
    embeddings: torch.Tensor
    mask: torch.Tensor
    members: torch.Tensor


class TextParts(NamedTuple):
    """The text side.

    words (B, L, D): what the head gives, after the normalisation of the input. states (B, L, D): after reasoning.
    context: None without a context head. embeddings (B, E). mask (B, L) bool: what takes part.
    """

    words: torch.Tensor
    states: torch.Tensor
    context: Context | None
    embeddings: torch.Tensor
    mask: torch.Tensor


def final_images(host: torch.Tensor, context: Context | None) -> torch.Tensor:
    """The host's vectors, of unit length, and behind them half the fused context and half the mean of the locals.

    Args:
        host: (B, D), or (B, V, D), every view of which gets the same context.
        context: None: the host's vectors alone.

    Returns:
        (B, E) or (B, V, E).
    """
    unit = normalise(host)
    if context is None:
        return unit
    tail = CONTEXT_SHARE * torch.cat([context.fused, context.mean_local], dim=-1)
    if unit.ndim == 3:
        tail = tail[:, None].expand(-1, unit.shape[1], -1)
    return torch.cat([unit, tail.to(unit.dtype)], dim=-1)


def final_texts(host: torch.Tensor, context: Context | None) -> torch.Tensor:
    """The host's vectors (B, D), of unit length, and behind them the mean of the locals and the fused context: (B, E).

    So each fused vector meets the mean of the other side's locals in the inner product.
    """
    unit = normalise(host)
    if context is None:
        return unit
    return torch.cat([unit, context.mean_local.to(unit.dtype), context.fused.to(unit.dtype)], dim=-1)
