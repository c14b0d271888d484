"""Region relations of VSRN (Li et al. 2019, section 3.2; golden `vsrn.json`, rs_gcn)."""

from __future__ import annotations

import torch
from torch import nn

from xmatch.models.context.config import ContextConfig
from xmatch.models.members import Masks, clean, on_members


class GraphBlock(nn.Module):
    """One graph convolution over the fully connected members, with a residual.

    R = theta(V) phi(V)^T / N without a softmax, then V + BatchNorm(W R g(V)). The BatchNorm starts at zero, so a fresh
    block changes nothing.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D), zero on padding, and (B, K) to (B, K, D), zero on padding."""
        counts = mask.sum(1).clamp_min(1).to(vectors.dtype)[:, None, None]
        relations = self.theta(vectors) @ self.phi(vectors).transpose(1, 2) / counts
        mixed = relations.masked_fill(~mask[:, None, :], 0.0) @ self.g(vectors)
        return vectors + on_members(lambda rows: self.norm(self.out(rows)), mixed, mask)


class GraphContext(nn.Module):
    """Graph blocks one after the other."""

    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GraphBlock(dim) for _ in range(config.layers))

    def forward(self, vectors: torch.Tensor, masks: Masks, positions: torch.Tensor | None) -> torch.Tensor:
        """(B, K, D) to (B, K, D), zero on padding."""
        vectors = clean(vectors, masks.counted)
        for block in self.blocks:
            vectors = block(vectors, masks.counted)
        return vectors
