"""Projection heads into the shared space, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Which head, and its numbers."""

    kind: Literal["vokenization", "maria", "linear", "mlp"] = "vokenization"
    """`vokenization`: one hidden layer of 256, dropout 0.3. `maria`: two of 1024, dropout 0.2. `linear`: none. `mlp`:
    one hidden layer between dropouts on features and hidden units."""
    hidden: int = 256
    """Hidden width (`maria` published with 1024)."""
    dropout: float = 0.3
    """Dropout after each hidden layer (`maria` published with 0.2); for `linear` and `mlp` on the features too."""


class VokenizationHead(nn.Module):
    """Linear, ReLU, dropout, linear; state-dict keys `mlp.0` and `mlp.3` as the original's (golden `model.json`)."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        hidden, dropout = config.hidden, nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), dropout, nn.Linear(hidden, dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.mlp(features)
        return output


class _MariaStack(nn.Module):
    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [width, config.hidden, config.hidden, dim]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for linear in self.linears[:-1]:
            features = self.dropout(torch.relu(linear(features)))
        output: torch.Tensor = self.linears[-1](features)
        return output


class MariaHead(nn.Module):
    """Two hidden layers; state-dict keys `mlp.linears.{0,1,2}` as the original's (golden `model.json`)."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = _MariaStack(width, dim, config)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.mlp(features)
        return output


class LinearHead(nn.Module):
    """Dropout on the features and one linear map."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.mlp(features)
        return output


class MlpHead(nn.Module):
    """Dropout on the features, then linear, ReLU, dropout, linear."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        drop, hidden = config.dropout, config.hidden
        layers = [nn.Dropout(drop), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(drop), nn.Linear(hidden, dim)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.mlp(features)
        return output


HEADS: dict[str, Callable[[int, int, HeadConfig], nn.Module]] = {
    "vokenization": VokenizationHead,
    "maria": MariaHead,
    "linear": LinearHead,
    "mlp": MlpHead,
}


def build_head(width: int, dim: int, config: HeadConfig) -> nn.Module:
    """The head named in `config` from `width` features to `dim`."""
    return HEADS[config.kind](width, dim, config)


def normalise(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) divided by their L2 norm; a zero vector stays zero (the original gives NaN)."""
    norms: torch.Tensor = vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return vectors / norms
