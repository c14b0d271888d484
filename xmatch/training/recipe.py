"""The protocol between a recipe (what is trained) and a trainer (where and how long)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


class SampleKey(NamedTuple):
    """Where a batch stands in a run; the only source of randomness of its samples."""

    seed: int
    epoch: int


class Recipe(Protocol):
    """Everything a trainer needs to know of what it trains."""

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        ...

    def build_model(self) -> nn.Module:
        """The model with its starting weights; equal for every worker."""
        ...

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Optimizer parameter groups, trainable parameters only."""
        ...

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Mapping[str, torch.Tensor]:
        """The samples at `indices` (B,) as tensors; a pure function of its arguments."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scalar loss of one batch on the model's device."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation figures; the trainer selects by one of them."""
        ...

    def save_model(self, model: nn.Module, folder: str) -> None:
        """Write the model's weights and configuration into a folder."""
        ...

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Read weights written by `save_model` into the model."""
        ...
