"""Poolings of an image's set that depend on the members' order: VSRN's recurrent one and CAMERA's several views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from xmatch.models.context.recurrent import run_over_members
from xmatch.models.members import clean, members_first, put_back, take_places
from xmatch.models.pooling import build_pooling

CONVOLUTIONS = ((256, 1, 1), (128, 3, 1), (128, 3, 2), (128, 3, 3), (128, 5, 1), (128, 5, 2), (128, 5, 3))
"""Channels, width and dilation of CAMERA's parallel convolutions; each keeps the length."""


class GruPooling(nn.Module):
    """The last state of a GRU over the members in their order (VSRN's global reasoning; golden `vsrn.json`).

    Args:
        width: of members and state.
        batch_norm: end with a BatchNorm over the images, as VSRN does on Flickr30k.
    """

    def __init__(self, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.norm = nn.BatchNorm1d(width) if batch_norm else None

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        states, _ = run_over_members(self.rnn, vectors, mask)
        last = states[torch.arange(len(states), device=states.device), mask.sum(1).clamp_min(1) - 1]
        return last if self.norm is None else self.norm(last)


class ViewsPooling(nn.Module):
    """Several weighted means of the members, each a view of the image.

    This is CAMERA's summariser (Qu et al. 2020, section 3.3; golden `camera_summarization.json`).

    Args:
        width: of the members.
        views: V.
    """

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, size, dilation=dilation, padding=dilation * (size // 2))
            for channels, size, dilation in CONVOLUTIONS
        )
        self.score = nn.Linear(sum(channels for channels, _, _ in CONVOLUTIONS), views)

    def scores(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """How much each member counts in each view, before the softmax: (B, K, V), zero on padding.

        Members that padding stands between are neighbours, as if it were not there.
        """
        order = members_first(mask)
        line = take_places(clean(vectors, mask), order).transpose(1, 2)
        seen = torch.cat([torch.relu(conv(line)) for conv in self.convs], dim=1)
        return clean(put_back(self.score(seen.transpose(1, 2)), order), mask)

    def summarise(self, vectors: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K, V) to the views (B, V, D)."""
        weights = scores.float().masked_fill(~mask[..., None], float("-inf")).softmax(1).to(vectors.dtype)
        return torch.einsum("bkv,bkd->bvd", weights, clean(vectors, mask))

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, V, D)."""
        return self.summarise(vectors, self.scores(vectors, mask), mask)


def build_image_pooling(name: str, width: int, *, views: int, batch_norm: bool) -> nn.Module:
    """The pooling called `name`: `gru` and `views`, and all those of `xmatch.models.pooling`."""
    own: dict[str, Callable[[], nn.Module]] = {
        "gru": lambda: GruPooling(width, batch_norm=batch_norm),
        "views": lambda: ViewsPooling(width, views),
    }
    return own[name]() if name in own else build_pooling(name, width)
