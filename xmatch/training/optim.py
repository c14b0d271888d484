"""Optimizers and learning-rate schedules of the published set-ups, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from xmatch.errors import InputError
from xmatch.training.recipe import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Which parameters learn at another rate, with decay, or later."""

    weight_decay: float = 0.0
    """Decoupled weight decay (adamw)."""
    decay: Literal["matrices", "by_name", "all"] = "matrices"
    """`matrices`: biases and normalisation weights are left out. `by_name`: so are they by their names, and the
    temperature, but vectors such as a class token decay (OpenCLIP, AGREE). `all`: as VSE-infinity and torch's
    default."""
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
    warmup_steps: int = 0
    """The same in steps, where a published number is meant; 0: by `warmup_share`."""
    loss_ramp_epoch: int = -1
    """Epoch whose loss is multiplied by step / steps, as VSE-infinity's grid models do in epoch 1; -1: none."""
    clip_norm: float = 5.0
    """Largest global gradient norm; .inf: not clipped."""
    clip_frozen: bool = False
    """Let gradients of parameters that do not learn yet count in that norm (SelfAlign on CAMERA)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """`adam`, `adamw`, `adamax`: decay rates of the two moments; OpenCLIP and AGREE take 0.9, 0.98."""
    eps: float = 1e-8
    """`adam`, `adamw`, `adamax`: added to the root of the second moment; OpenCLIP and AGREE take 1e-6."""
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and greatest value of parameters after each step, by name, such as `logit_scale: [0, 4.6052]`."""

    def __post_init__(self) -> None:
        """Refuse rates and shares that cannot be meant."""
        super().__post_init__()
        if self.lr <= 0 or not 0 <= self.warmup_share < 1 or self.clip_norm <= 0:
            raise InputError(
                f"optim needs lr > 0, 0 <= warmup_share < 1, clip_norm > 0; got {self.lr}, {self.warmup_share}, "
                f"{self.clip_norm}."
            )
        if self.warmup_steps < 0 or (self.warmup_steps and self.warmup_share):
            raise InputError("optim.warmup_steps must not be negative; give it or optim.warmup_share, not both.")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise InputError(f"optim needs 0 <= betas < 1 and eps > 0; got {self.betas}, {self.eps}.")
        if any(least > greatest for least, greatest in self.limits.values()):
            raise InputError(f"optim.limits are pairs of a least and a greatest value; got {self.limits}.")
        if (self.schedule == "steps") != bool(self.milestones):
            raise InputError("optim.schedule=steps and optim.milestones belong together: give both or neither.")


UNDECAYED = ("bn", "ln", "norm", "bias", "logit_scale")
"""Parts of the names of parameters that `decay=by_name` leaves out."""
DECAYS: dict[str, Callable[[str, nn.Parameter], bool]] = {
    "matrices": lambda _, parameter: parameter.ndim > 1,
    "by_name": lambda name, _: not any(part in name.lower() for part in UNDECAYED),
    "all": lambda _, __: True,
}


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
        decays = DECAYS[config.decay](name, parameter)
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


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]] = {
    "adam": lambda groups, c: torch.optim.Adam(groups, lr=c.lr, betas=c.betas, eps=c.eps),
    "adamw": lambda groups, c: torch.optim.AdamW(groups, lr=c.lr, betas=c.betas, eps=c.eps),
    "adamax": lambda groups, c: torch.optim.Adamax(groups, lr=c.lr, betas=c.betas, eps=c.eps),
    "rmsprop": lambda groups, c: torch.optim.RMSprop(groups, lr=c.lr),
    "sgd": lambda groups, c: torch.optim.SGD(groups, lr=c.lr, momentum=0.9),
}


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer named in `config` over parameter groups; only `adamw` and `sgd` decay weights."""
    decays = config.name in ("adamw", "sgd")
    settings: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "weight_decay": group.weight_decay if decays else 0.0,
            "lr_factor": group.lr_factor,
            "frozen_epochs": group.frozen_epochs,
        }
        for group in groups
    ]
    return OPTIMIZERS[config.name](settings, config)


def set_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps_per_epoch: int, epochs: int
) -> None:
    """Give every group its rate at `step` (0-based, over the whole run)."""
    share = rate_at(step, steps_per_epoch * epochs, config, epoch=step // max(1, steps_per_epoch))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["lr_factor"] * share


def clip_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig, epoch: int) -> None:
    """Clip the global norm of the gradients, and forget those of groups that do not learn yet."""
    if not config.clip_frozen:
        drop_frozen_gradients(optimizer, epoch)
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.clip_norm)
    drop_frozen_gradients(optimizer, epoch)


def drop_frozen_gradients(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Forget the gradients of groups that do not learn yet, so that moments do not see them."""
    for group in optimizer.param_groups:
        if epoch < group["frozen_epochs"]:
            for parameter in group["params"]:
                parameter.grad = None


def keep_within(model: nn.Module, limits: Mapping[str, tuple[float, float]]) -> None:
    """Set parameters beyond their limits to the limit.

    Raises:
        InputError: the model has no such parameter.
    """
    for name, (least, greatest) in limits.items():
        try:
            model.get_parameter(name).data.clamp_(least, greatest)
        except AttributeError as error:
            raise InputError(
                f"optim.limits: the model has no parameter {name!r}; see model.named_parameters()."
            ) from error


def rate_at(step: int, total_steps: int, config: OptimConfig, epoch: int = 0) -> float:
    """The share of the peak rate at `step` (0-based) of `total_steps`; a pure function, so resume needs no state."""
    warmup = config.warmup_steps or int(config.warmup_share * total_steps)
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
