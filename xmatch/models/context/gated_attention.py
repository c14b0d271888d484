"""Adaptive gating self-attention of CAMERA (Qu et al. 2020, section 3.2; golden `camera.json`, agsa)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.context.positions import PositionGate
from xmatch.models.members import Masks, clean, on_members


class GatedAttention(nn.Module):
    """Self-attention whose queries and keys are gated by each other; the heads are concatenated as they are.

    Within a head of width d: G = FCq(q) * FCk(k), M = sigmoid(FCg(G)) of width 2d, q <- q * M[:d], k <- k * M[d:]. The
    three maps of the gate are shared by all heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"gated attention needs a width that its heads divide: {dim} is not {heads} heads.")
        self.heads, width = heads, dim // heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_query, self.gate_key = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Linear(width, 2 * width)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D), finite on padding, and (B, K) to (B, K, D)."""
        maps = (self.query, self.key, self.value)
        query, key, value = (m(vectors).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in maps)
        gates = torch.sigmoid(self.gate(self.gate_query(query) * self.gate_key(key)))
        of_query, of_key = gates.chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(query * of_query, key * of_key, value, mask[:, None, None, :])
        return mixed.transpose(1, 2).flatten(2)


class GatedLayer(nn.Module):
    """Attention, BatchNorm over the members, dropout, and the input again, which no position gates."""

    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.attention = GatedAttention(dim, config.heads)
        self.norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, vectors: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The residual `vectors` and what attention sees, both (B, K, D), to (B, K, D)."""
        output: torch.Tensor = self.dropout(on_members(self.norm, self.attention(seen, mask), mask))
        return vectors + output


class GatedAttentionContext(nn.Module):
    """Gated layers one after the other; positions gate what the first one sees."""

    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.position_gate = PositionGate(dim) if config.positions else None
        self.layers = nn.ModuleList(GatedLayer(dim, config) for _ in range(config.layers))

    def forward(self, vectors: torch.Tensor, masks: Masks, positions: torch.Tensor | None) -> torch.Tensor:
        """(B, K, D), and (B, K, 6) positions where they gate, to (B, K, D), zero on padding.

        Raises:
            InputError: positions are needed and not given.
        """
        vectors = clean(vectors, masks.counted)
        seen = vectors
        if self.position_gate is not None:
            if positions is None:
                raise InputError(
                    "this model gates regions by their places, but none were given: its features need boxes and image "
                    "sizes ({split}_boxes.npy and {split}_img_sizes.npy of a precomputed folder, or the columns box "
                    "and image_size of a table of vectors)."
                )
            seen = vectors * self.position_gate(clean(positions.to(vectors.dtype), masks.counted))
        for layer in self.layers:
            vectors = seen = layer(vectors, seen, masks.counted)
        return vectors
