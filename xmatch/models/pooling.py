"""Pooling operators: from a set of vectors to one, by name.

Shapes: B batch, K positions of the padded set, D width. A mask is (B, K) bool, true for real members; every set has at
least one. What stands in padded positions never matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xmatch.errors import InputError

GPO_TEMPERATURE = 0.1
"""Divides the scores before the softmax (VSE-infinity, section 3.2)."""


def positional_code(length: int, width: int) -> torch.Tensor:
    """Sine and cosine codes of 0-based positions (VSE-infinity, equation 5; golden `gpo.json`).

    Args:
        length: number of positions.
        width: columns, even; column 2j is sin(k w_j) and 2j + 1 is cos(k w_j), w_j = 10000^(-2j / width).

    Returns:
        float32 of shape (length, width).

    Raises:
        InputError: `width` is odd.
    """
    if width % 2:
        raise InputError(f"the positional code needs an even width, got {width}.")
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(length, width)


class MeanPooling(nn.Module):
    """The mean of the real members."""

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        total: torch.Tensor = vectors.masked_fill(~mask[..., None], 0.0).sum(1)
        return total / mask.sum(1, keepdim=True).clamp_min(1).to(vectors.dtype)


class MaxPooling(nn.Module):
    """The largest value of each dimension among the real members."""

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        return vectors.masked_fill(~mask[..., None], float("-inf")).max(1).values


class FirstPooling(nn.Module):
    """The first position: [CLS] of BERT-like encoders."""

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        return vectors[:, 0]


class LastPooling(nn.Module):
    """The last real position: the end-of-text token of CLIP, the final state of a recurrent network."""

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, -1).max(1).values.clamp_min(0)
        return vectors[torch.arange(len(vectors), device=vectors.device), last]


class KMaxPooling(nn.Module):
    """The mean of each dimension's k largest values; a set of fewer members uses them all.

    The original lets a short set shrink k for the sets behind it in the batch; here each set stands alone (golden
    `vse_image_encoder.json`, `kmax`).
    """

    def __init__(self, k: int = 20) -> None:
        super().__init__()
        self.k = k

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        ordered = sorted_members(vectors, mask)[:, : self.k]
        counts = mask.sum(1, keepdim=True).clamp(1, self.k).to(vectors.dtype)
        return ordered.sum(1) / counts


class AttentionPooling(nn.Module):
    """A learnt weighting in several heads: each head scores the members and averages its own slice of the dimensions.

    Starts as the mean: the scoring weights are zero.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.score = nn.Linear(width, self.heads)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        clean = vectors.masked_fill(~mask[..., None], 0.0)
        scores = self.score(clean).float().masked_fill(~mask[..., None], float("-inf"))
        weights = scores.softmax(1).to(vectors.dtype)  # (B, K, H)
        split = clean.reshape(*clean.shape[:2], self.heads, -1)
        pooled: torch.Tensor = torch.einsum("bkh,bkhd->bhd", weights, split)
        return pooled.reshape(len(vectors), -1)


class GeneralizedPooling(nn.Module):
    """GPO, the generalized pooling operator of VSE-infinity (CVPR 2021, section 3; golden `gpo.json`).

    Each dimension's values are sorted in descending order, and their weighted sum is taken with weights that depend
    on the position and on the set's size alone: a bidirectional GRU over positional codes, averaged over directions,
    a linear map to a score, a softmax at temperature 0.1. So the weights are computed once for each size in a batch,
    and `weight_table` exports them.
    """

    def __init__(self, width: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.width = width
        self.gru = nn.GRU(width, hidden, 1, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden, 1, bias=False)

    def weights_of(self, sizes: torch.Tensor, width: int) -> torch.Tensor:
        """Pooling weights of sets with `sizes` (S,) members, (S, width) float32, zero beyond a set's size."""
        device = self.linear.weight.device
        with torch.autocast(device.type, enabled=False):
            codes = positional_code(width, self.width).to(device).expand(len(sizes), -1, -1)
            packed = pack_padded_sequence(codes, sizes.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=width)
            forward, backward = states.chunk(2, dim=-1)
            scores = self.linear((forward + backward) / 2)[..., 0] / GPO_TEMPERATURE
            padded = torch.arange(width, device=device)[None, :] >= sizes.to(device)[:, None]
            weights: torch.Tensor = scores.masked_fill(padded, float("-inf")).softmax(-1)
            return weights

    @torch.no_grad()
    def weight_table(self, largest: int) -> torch.Tensor:
        """The weights of every set size N from 1 to `largest` in row N - 1; float32 of shape (largest, largest)."""
        return self.weights_of(torch.arange(1, largest + 1), largest)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, K) to (B, D)."""
        sizes, row = torch.unique(mask.sum(1), return_inverse=True)
        weights = self.weights_of(sizes, mask.shape[1])[row].to(vectors.dtype)
        pooled: torch.Tensor = torch.einsum("bk,bkd->bd", weights, sorted_members(vectors, mask))
        return pooled


def sorted_members(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each dimension's real values in descending order, zeros behind them: (B, K, D) and (B, K) to (B, K, D)."""
    filled = vectors.masked_fill(~mask[..., None], float("-inf")).transpose(1, 2)
    ordered = filled.sort(dim=2, descending=True).values.transpose(1, 2)
    places = torch.arange(mask.shape[1], device=mask.device)
    return ordered.masked_fill((places[None, :] >= mask.sum(1, keepdim=True))[..., None], 0.0)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda _: MeanPooling(),
    "max": lambda _: MaxPooling(),
    "cls": lambda _: FirstPooling(),
    "last": lambda _: LastPooling(),
    "kmax": lambda _: KMaxPooling(),
    "gpo": lambda _: GeneralizedPooling(),
    "attention": AttentionPooling,
}


def build_pooling(name: str, width: int) -> nn.Module:
    """The pooling operator called `name` for vectors of `width` dimensions."""
    if name not in POOLINGS:
        raise InputError(f"unknown pooling {name!r}; choose one of {', '.join(POOLINGS)}.")
    return POOLINGS[name](width)


def pool(module: nn.Module, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply a pooling, (B, K, D) and (B, K) to (B, D); a set that augmentation or bad data left empty is refused.

    Raises:
        InputError: a set is empty; says which.
    """
    empty = (~mask).all(1)
    if bool(empty.any()):
        raise InputError(f"the set in row {int(empty.nonzero()[0])} of a batch has no member; nothing can be pooled.")
    pooled: torch.Tensor = module(vectors, mask)
    return pooled
