"""Optimizers and learning-rate schedules of the published set-ups, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule.

    The published dual encoders of Vokenization and Maria use `adam` at a constant 1e-3 and clip gradients at 5.0.
    """

    name: Literal["adam", "adamw"] = "adam"
    """`adam` as published, or `adamw` with decoupled weight decay on matrices."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (adamw); biases and normalisation weights are left out."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up: constant as published, or falling to zero at the last step."""
    warmup_share: float = 0.0
    """Share of all steps over which the rate rises linearly from zero."""
    clip_norm: float = 5.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        """Refuse rates and shares that cannot be meant."""
        if self.lr <= 0 or not 0 <= self.warmup_share < 1 or self.clip_norm <= 0:
            raise InputError(
                f"optim needs lr > 0, 0 <= warmup_share < 1, clip_norm > 0; got {self.lr}, {self.warmup_share}, "
                f"{self.clip_norm}."
            )


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with `weight_decay`, everything of one dimension or less without."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer named in `config` over parameter groups."""
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.name == "adam":
        groups = [{**group, "weight_decay": 0.0} for group in groups]
    return kinds[config.name](groups, lr=config.lr)  # type: ignore[call-arg]


def rate_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The share of the peak rate at `step` (0-based) of `total_steps`; a pure function, so resume needs no state."""
    warmup = int(config.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda x: max(0.0, 1.0 - x),
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * min(1.0, x))),
    }
    return shapes[config.schedule](done)
