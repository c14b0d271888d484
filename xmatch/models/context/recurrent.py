"""A recurrent layer over the members of a set in their order."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xmatch.models.context.config import ContextConfig
from xmatch.models.members import Masks, clean, members_first, put_back, take_places


class RecurrentContext(nn.Module):
    """GRU layers, one direction; padding is passed over wherever it stands, and gives zeros."""

    def __init__(self, dim: int, config: ContextConfig) -> None:
        super().__init__()
        self.rnn = nn.GRU(dim, dim, config.layers, batch_first=True)

    def forward(self, vectors: torch.Tensor, masks: Masks, positions: torch.Tensor | None) -> torch.Tensor:
        """(B, K, D) to the states (B, K, D), zero on padding."""
        states, order = run_over_members(self.rnn, vectors, masks.real)
        return put_back(states, order)


def run_over_members(rnn: nn.GRU, vectors: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of a GRU over the members of each set in their order.

    Args:
        rnn: batch first.
        vectors: (B, K, D).
        mask: (B, K), at least one true a row.

    Returns:
        States (B, K, H), the members' first and zeros behind them; and the places (B, K) that they are of.
    """
    order = members_first(mask)
    compact = take_places(clean(vectors, mask), order)
    packed = pack_padded_sequence(compact, mask.sum(1).clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=mask.shape[1])
    return states, order
