"""Optimizers and learning-rate schedules of the published set-ups, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from xmatch.errors import InputError
from xmatch.training.recipe import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Which parameters learn at another rate, with decay, or later."""

    weight_decay: float = 0.0
    """Decoupled weight decay (adamw)."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices`: biases and normalisation weights are left out. `all`: as VSE-infinity and torch's default."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factor on the rate of parameters whose name begins so, such as `text_tower: 0.1`; the longest beginning wins."""
    frozen_epochs: dict[str, int] = field(default_factory=dict)
    """Epochs at the start in which parameters whose name begins so do not learn, such as `image_tower: 1`."""

    def __post_init__(self) -> None:
        """Refuse factors and epochs that cannot be meant."""
        if any(factor < 0 for factor in self.lr_factors.values()) or any(n < 0 for n in self.frozen_epochs.values()):
            raise InputError("optim.lr_factors and optim.frozen_epochs must not be negative.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(GroupConfig):
    """Optimizer and schedule.

    The published dual encoders of Vokenization and Maria use `adam` at a constant 1e-3 and clip gradients at 5.0.
    """

    name: Literal["adam", "adamw", "adamax", "rmsprop", "sgd"] = "adam"
    """`adam` as published, `adamw` with decoupled weight decay; `sgd` has momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "steps"] = "constant"
    """Shape after the warm-up: constant as published, falling to zero at the last step, or in `steps`."""
    milestones: tuple[int, ...] = ()
    """`steps`: epochs from whose start on the rate is multiplied by `gamma` once more."""
    gamma: float = 0.1
    """`steps`: the factor."""
    warmup_share: float = 0.0
    """Share of all steps over which the rate rises linearly from zero."""
    loss_ramp_epoch: int = -1
    """Epoch whose loss is multiplied by step / steps, as VSE-infinity's grid models do in epoch 1; -1: none."""
    clip_norm: float = 5.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        """Refuse rates and shares that cannot be meant."""
        super().__post_init__()
        if self.lr <= 0 or not 0 <= self.warmup_share < 1 or self.clip_norm <= 0:
            raise InputError(
                f"optim needs lr > 0, 0 <= warmup_share < 1, clip_norm > 0; got {self.lr}, {self.warmup_share}, "
                f"{self.clip_norm}."
            )
        if (self.schedule == "steps") != bool(self.milestones):
            raise InputError("optim.schedule=steps and optim.milestones belong together: give both or neither.")


def parameter_groups(model: nn.Module, config: GroupConfig) -> list[ParameterGroup]:
    """Trainable parameters by weight decay, rate and time of thawing.

    Raises:
        InputError: a beginning in the configuration fits no trainable parameter.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for start in (*config.lr_factors, *config.frozen_epochs):
        if not any(name.startswith(start) for name, _ in named):
            heads = sorted({name.split(".")[0] for name, _ in named})
            raise InputError(
                f"optim: no trainable parameter begins with {start!r}; they begin with {', '.join(heads)}."
            )
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = config.decay == "all" or parameter.ndim > 1
        key = (
            config.weight_decay if decays else 0.0,
            _longest(name, config.lr_factors, 1.0),
            int(_longest(name, config.frozen_epochs, 0)),
        )
        groups.setdefault(key, []).append(parameter)
    return [ParameterGroup(parameters, *key) for key, parameters in groups.items()]


def _longest(name: str, by_start: Mapping[str, float], default: float) -> float:
    fitting = [start for start in by_start if name.startswith(start)]
    return by_start[max(fitting, key=len)] if fitting else default


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
}


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer named in `config` over parameter groups; only `adamw` and `sgd` decay weights."""
    decays = config.name in ("adamw", "sgd")
    settings = [
        {
            "params": group.parameters,
            "weight_decay": group.weight_decay if decays else 0.0,
            "lr_factor": group.lr_factor,
            "frozen_epochs": group.frozen_epochs,
        }
        for group in groups
    ]
    return OPTIMIZERS[config.name](settings, lr=config.lr)


def set_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps_per_epoch: int, epochs: int
) -> None:
    """Give every group its rate at `step` (0-based, over the whole run)."""
    share = rate_at(step, steps_per_epoch * epochs, config, epoch=step // max(1, steps_per_epoch))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["lr_factor"] * share


def drop_frozen_gradients(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Forget the gradients of groups that do not learn yet, so that neither clipping nor moments see them."""
    for group in optimizer.param_groups:
        if epoch < group["frozen_epochs"]:
            for parameter in group["params"]:
                parameter.grad = None


def rate_at(step: int, total_steps: int, config: OptimConfig, epoch: int = 0) -> float:
    """The share of the peak rate at `step` (0-based) of `total_steps`; a pure function, so resume needs no state."""
    warmup = int(config.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "steps": lambda _: config.gamma ** sum(epoch >= milestone for milestone in config.milestones),
        "linear": lambda x: max(0.0, 1.0 - x),
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * min(1.0, x))),
    }
    return shapes[config.schedule](done)
