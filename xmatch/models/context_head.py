"""SelfAlign's context head: what a model without cross-modal attention keeps of the alignment at retrieval time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from xmatch.models.heads import normalise
from xmatch.models.members import clean, on_members


class Context(NamedTuple):
    """What the head makes of a set of B x K states of width D.

    guide (B, D): the whole, unit length. locals (B, K, D): the members, unit length, zero where padded. fused (B, D):
    mean and whole mixed, unit length. mean_local (B, D): the mean of the real locals, not of unit length.
    """

    guide: torch.Tensor
    locals: torch.Tensor
    fused: torch.Tensor
    mean_local: torch.Tensor


class ContextHead(nn.Module):
    """From the states of one side to its guide, locals and fused context (SelfAlign, goldens `selfalign*`).

    With h_n the states of the real members and avg their mean: guide = ReLU(BN(W avg + c)), locals = ReLU(BN(h_n)),
    fused = a avg + (1 - a) guide with a = sigmoid of a two-layer perceptron on [avg; guide], one number a sample. All
    three are brought to unit length. What the mask leaves out takes part in nothing, neither in means nor in the
    statistics of the BatchNorm; the original lets padding take part: give a mask that is true everywhere for that.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.guide_fc = nn.Linear(dim, dim)
        self.guide_norm = nn.BatchNorm1d(dim)
        self.local_norm = nn.BatchNorm1d(dim)
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> Context:
        """(B, K, D) states and their (B, K) bool mask, with one true member a row at least, to a `Context`."""
        counts = mask.sum(1, keepdim=True).clamp_min(1).to(states.dtype)
        average = clean(states, mask).sum(1) / counts
        guide = torch.relu(self.guide_norm(self.guide_fc(average)))
        local = normalise(torch.relu(on_members(self.local_norm, states, mask)))
        share = torch.sigmoid(self.gate(torch.cat([average, guide], dim=-1)))
        fused = share * average + (1.0 - share) * guide
        return Context(normalise(guide), local, normalise(fused), local.sum(1) / counts)
