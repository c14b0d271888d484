"""Rows for the losses of AGREE: those of the golden cases, and drawn ones, in one process or in several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from alignment.agree.losses import (
    LOSS_NAMES,
    AgreeLossConfig,
    Aligned,
    Grounded,
    LossName,
    Objects,
    Slots,
    agree_losses,
    one_workers_gradient,
    weighted_total,
)
from xmatch.training.gather import gather_rows
from xmatch.training.step import average_gradients

GOLDEN = Path(__file__).parents[1] / "golden" / "agree_mvptr"
THEIRS: dict[LossName, str] = dict(
    zip(LOSS_NAMES, ("global", "prompt", "text_mask", "da", "da_mask", "vg_mask"), strict=True)
)
"""What the golden cases call the losses."""
LEGACY: dict[str, Any] = {"mask_reduction": "sum", "same_image": "negative", "same_entity": "negative"}
"""What the original counts, its gradients apart."""


def golden(name: str) -> dict[str, Any]:
    """A golden file of AGREE."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_leaves(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The encoder outputs of a golden case, not normalised, that take gradients."""
    return {name: torch.tensor(values, requires_grad=True) for name, values in inputs.items()}


def golden_rows(units: dict[str, torch.Tensor]) -> Aligned:
    """All slots and pairs of a golden case are there, and nothing is the same."""
    count, slots = units["prompts"].shape[:2]
    numbers = torch.arange(count)
    return Aligned(
        units["image"],
        units["text"],
        numbers,
        Slots(
            units["prompts"],
            units["masks"],
            torch.ones(count, slots, dtype=torch.bool),
            torch.arange(count * slots).reshape(count, slots),
        ),
        Objects(
            units["da_image"],
            units["da_text"],
            units["da_image_mask"],
            torch.ones(count, dtype=torch.bool),
            numbers,
            numbers,
        ),
        Grounded(units["vg_image_mask"], torch.ones(count, dtype=torch.bool)),
    )


class Found(NamedTuple):
    """A loss, its gradient by the logarithm of the logit scale, and those by the encoders' outputs."""

    value: float
    grad_logit_scale: float
    grad: dict[str, torch.Tensor]


def golden_losses(
    inputs: dict[str, Any], logarithm: float, config: AgreeLossConfig, world: int = 1
) -> dict[str, Found]:
    """Every loss of a golden case under its own name there, and the total, with gradients."""
    found = {}
    for name in ("total", *LOSS_NAMES):
        leaves, scale = golden_leaves(inputs), torch.tensor(logarithm, requires_grad=True)
        units = {key: gather_rows(F.normalize(leaves[key], dim=-1)) for key in sorted(leaves)}
        if config.legacy_gather:
            units = {key: one_workers_gradient(rows, world) for key, rows in units.items()}
        values = agree_losses(golden_rows(units), scale.exp(), config)
        loss = weighted_total(values, config) if name == "total" else values[name]
        loss.backward()
        gradients = {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}
        found[THEIRS.get(name, name)] = Found(loss.item(), 0.0 if scale.grad is None else scale.grad.item(), gradients)
    return found


def golden_rank(given: tuple[dict[str, Any], AgreeLossConfig], rank: int, world: int) -> dict[str, Found]:
    """The losses that a rank of the two-process case finds."""
    case, config = given
    return golden_losses(case[f"rank{rank}"]["inputs"], case["logit_scale_param"], config, world)


class Drawn(NamedTuple):
    """Rows before an encoder, (B, …, D), and what is known of them, (B, …)."""

    raw: dict[str, torch.Tensor]
    facts: dict[str, torch.Tensor]


RAW = {"image": (), "text": (), "prompts": (3,), "masked": (3,), "seen": (), "seen_prompt": (), "painted": ()}
WIDTH = 6


def draw_rows(seed: int, count: int) -> Drawn:
    """Rows with empty slots, captions of one image, and entities that recur."""
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (count, *shape), generator=generator)

    raw = {name: torch.randn(count, *shape, WIDTH, generator=generator) for name, shape in RAW.items()}
    facts = {
        "image_rows": whole(max(2, count - 1)),
        "valid": whole(3, 3) > 0,
        "keys": whole(6, 3),
        "has_object": whole(3) > 0,
        "object_keys": whole(4),
        "object_rows": whole(5),
        "grounded": whole(2) > 0,
    }
    return Drawn(raw, facts)


def aligned(units: dict[str, torch.Tensor], facts: dict[str, torch.Tensor]) -> Aligned:
    """Embeddings and facts as the losses take them."""
    return Aligned(
        units["image"],
        units["text"],
        facts["image_rows"],
        Slots(units["prompts"], units["masked"], facts["valid"], facts["keys"]),
        Objects(
            units["seen"],
            units["seen_prompt"],
            units["painted"],
            facts["has_object"],
            facts["object_keys"],
            facts["object_rows"],
        ),
        Grounded(units["painted"] + 0.1 * units["image"], facts["grounded"]),
    )


class Encoder(nn.Module):
    """A linear map and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.map = nn.Linear(WIDTH, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))


class Step(NamedTuple):
    """The losses of a step, their total, and the gradients in the encoder."""

    values: dict[str, float]
    total: float
    gradients: dict[str, torch.Tensor]


def step(seed: int, count: int, config: AgreeLossConfig, rank: int = 0, world: int = 1) -> Step:
    """One step over `count` drawn rows, of which a worker has every W-th."""
    encoder, drawn = Encoder(), draw_rows(seed, count)
    units = {
        name: gather_rows(F.normalize(encoder.map(rows[rank::world]), dim=-1))
        for name, rows in sorted(drawn.raw.items())
    }
    if config.legacy_gather:
        units = {name: one_workers_gradient(rows, world) for name, rows in units.items()}
    facts = {name: gather_rows(rows[rank::world]) for name, rows in sorted(drawn.facts.items())}
    values = agree_losses(aligned(units, facts), encoder.logit_scale.exp(), config)
    total = weighted_total(values, config)
    total.backward()
    average_gradients(encoder)
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return Step({name: value.item() for name, value in values.items()}, total.item(), gradients)


def steps(cases: list[tuple[int, int, AgreeLossConfig]], rank: int, world: int) -> list[Step]:
    """`step` of every case, one after the other."""
    return [step(*case, rank, world) for case in cases]


def everything(given: tuple[Any, ...], rank: int, world: int) -> tuple[dict[str, Found], dict[str, Found], list[Step]]:
    """The golden case of two processes in both ways, and all drawn cases, by one start of the processes."""
    case, original, meant, cases = given
    return (
        golden_rank((case, original), rank, world),
        golden_rank((case, meant), rank, world),
        steps(cases, rank, world),
    )
