"""The reasoning of one side of a dual encoder, put together as its configuration says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from xmatch.models.context.config import ContextConfig
from xmatch.models.context.gated_attention import GatedAttentionContext
from xmatch.models.context.gcn import GraphContext
from xmatch.models.context.recurrent import RecurrentContext
from xmatch.models.members import Masks, clean, normalise_members, on_members

REASONINGS: dict[str, Callable[[int, ContextConfig], nn.Module]] = {
    "gcn": GraphContext,
    "gated_attention": GatedAttentionContext,
    "gru": RecurrentContext,
}


class FeedForward(nn.Module):
    """Two linear maps, BatchNorm over the members, and the input again (CAMERA's text side)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, K, D), zero on padding."""
        vectors = clean(vectors, mask)
        hidden = self.dropout(torch.relu(self.fc1(vectors)))
        output: torch.Tensor = self.dropout(on_members(lambda rows: self.norm(self.fc2(rows)), hidden, mask))
        return vectors + output


class SetContext(nn.Module):
    """What happens to a set between head and pooling, in three steps: `enter`, `reason`, `leave`.

    Args:
        dim: D.
        config: which steps do what.
        across_members: normalise over the members instead of the dimensions, as the originals do.
    """

    def __init__(self, dim: int, config: ContextConfig, *, across_members: bool = False) -> None:
        super().__init__()
        self.config, self.across_members = config, across_members
        self.reasoning = None if config.kind == "none" else REASONINGS[config.kind](dim, config)
        self.feed_forward = FeedForward(dim, config.dropout) if config.feed_forward else None

    def enter(self, projected: torch.Tensor, masks: Masks) -> torch.Tensor:
        """What the head gives, (B, K, D), normalised where asked."""
        if not self.config.normalise_before:
            return projected
        return normalise_members(projected, masks.counted, across_members=self.across_members)

    def reason(self, members: torch.Tensor, masks: Masks, positions: torch.Tensor | None = None) -> torch.Tensor:
        """States (B, K, D) of entered members, in the light of each other and of (B, K, 6) positions."""
        if self.reasoning is None:
            return members
        states: torch.Tensor = self.reasoning(members, masks, positions)
        return states

    def leave(self, states: torch.Tensor, masks: Masks) -> torch.Tensor:
        """States through the feed-forward part and normalised, where asked: what is pooled, (B, K, D)."""
        if self.feed_forward is not None:
            states = self.feed_forward(states, masks.counted)
        if not self.config.normalise_after:
            return states
        return normalise_members(states, masks.counted, across_members=self.across_members)
