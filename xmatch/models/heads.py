"""Projection heads into the shared space, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Which head, and its numbers."""

    kind: Literal[
        "vokenization",
        "maria",
        "linear",
        "mlp",
        "fc",
        "unit_fc",
        "fc_mlp",
        "projection",
        "projection_bias",
        "identity",
    ] = "vokenization"
    """`vokenization`: one hidden layer of 256, dropout 0.3. `maria`: two of 1024, dropout 0.2. `linear`: none. `mlp`:
    one hidden layer between dropouts on features and hidden units. `fc`, `fc_mlp`: VSE-infinity's, for grids and for
    regions. `unit_fc`: VSE++'s, `fc` on features of unit length. `projection`, `projection_bias`: one plain linear
    map (CLIP, SigLIP). `identity`: none at all."""
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
        """(..., width) to (..., dim)."""
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


class FcHead(nn.Module):
    """One linear map with the uniform start of VSE++ and VSE-infinity; state-dict key `fc` as the originals'."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(width, dim)
        bound = math.sqrt(6.0) / math.sqrt(width + dim)
        nn.init.uniform_(self.fc.weight, -bound, bound)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.fc(features)
        return output


class UnitFcHead(FcHead):
    """VSE++'s image head: features are brought to unit length, then mapped as by `FcHead`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        return super().forward(normalise(features))


class _FcMlpStack(nn.Module):
    """Linear, BatchNorm, ReLU, linear; the second BatchNorm is made and never used, as in the original."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, dim // 2), nn.Linear(dim // 2, dim)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(dim // 2), nn.BatchNorm1d(dim)])
        for parameter in self.bns[1].parameters():
            parameter.requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, width) to (R, dim)."""
        hidden = torch.relu(self.bns[0](self.layers[0](rows)))
        output: torch.Tensor = self.layers[1](hidden)
        return output


class FcMlpHead(FcHead):
    """VSE-infinity's region head: the linear map plus a two-layer perceptron with BatchNorm (golden `basic`).

    Batch statistics are taken over the rows given: the model gives real regions only, the original padding too.
    """

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__(width, dim, config)
        self.mlp = _FcMlpStack(width, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        rows = features.reshape(-1, features.shape[-1])
        output: torch.Tensor = self.mlp(rows) + self.fc(rows)
        return output.reshape(*features.shape[:-1], -1)


class ProjectionHead(nn.Module):
    """One linear map, with or without a bias (CLIP, SigLIP)."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(width, dim, bias=config.kind == "projection_bias")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., dim)."""
        output: torch.Tensor = self.proj(features)
        return output


class IdentityHead(nn.Module):
    """Features are the shared space already."""

    def __init__(self, width: int, dim: int, config: HeadConfig) -> None:
        super().__init__()
        if width != dim:
            raise InputError(f"an identity head needs features as wide as the shared space: {width} is not {dim}.")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., dim) to (..., dim)."""
        return features


HEADS: dict[str, Callable[[int, int, HeadConfig], nn.Module]] = {
    "vokenization": VokenizationHead,
    "maria": MariaHead,
    "linear": LinearHead,
    "mlp": MlpHead,
    "fc": FcHead,
    "unit_fc": UnitFcHead,
    "fc_mlp": FcMlpHead,
    "projection": ProjectionHead,
    "projection_bias": ProjectionHead,
    "identity": IdentityHead,
}


def build_head(width: int, dim: int, config: HeadConfig) -> nn.Module:
    """The head named in `config` from `width` features to `dim`."""
    return HEADS[config.kind](width, dim, config)


def normalise(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) divided by their L2 norm; a zero vector stays zero (the original gives NaN)."""
    norms: torch.Tensor = vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return vectors / norms
