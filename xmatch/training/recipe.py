"""The protocol between a recipe (what is trained) and a trainer (where and how long)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Rows = Mapping[str, torch.Tensor]
"""Tensors by name whose first axis counts samples."""


class SampleKey(NamedTuple):
    """Where a batch stands in a run; with the sample's own index the only source of randomness of a sample."""

    seed: int
    epoch: int


class ParameterGroup(NamedTuple):
    """Parameters that are stepped alike.

    lr_factor multiplies the rate; frozen_epochs: epochs at the start in which they do not learn.
    """

    parameters: list[nn.Parameter]
    weight_decay: float
    lr_factor: float
    frozen_epochs: int


class PartedLoss(NamedTuple):
    """A loss that is made of others: `total` is what is minimised, `parts` are scalars by name, reported beside it."""

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor]


class Recipe(Protocol):
    """Everything a trainer needs to know of what it trains: model, batches, step, evaluation."""

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        ...

    @property
    def gathers(self) -> bool:
        """Whether the loss spans the rows of all workers (global negatives) or of each alone."""
        ...

    def build_model(self) -> nn.Module:
        """The model with its starting weights; equal for every worker."""
        ...

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters in groups."""
        ...

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """The samples at `indices`, of shape (B,), as tensors; a pure function of its arguments, row by row."""
        ...

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """What the loss needs of each sample, rows first, (B, ...); a row depends on its own sample alone."""
        ...

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor | PartedLoss:
        """The scalar loss of all rows (B, ...) given, on the model's device; with its parts where it has any."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation figures; the trainer selects by one of them."""
        ...

    def save_model(self, model: nn.Module, folder: str) -> None:
        """Write the model's weights and configuration into a local folder."""
        ...

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Read weights written by `save_model` into the model."""
        ...
