"""Notices early that a run has gone wrong: NaN, embeddings collapsed to a point, a loss that does not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xmatch.errors import InputError

COLLAPSED = 0.999
"""Mean resultant length above which unit vectors are one point: the length of their mean."""
PATIENCE_STEPS = 200
"""Steps in a row with collapsed embeddings before the run is stopped."""
STUCK_EPOCHS = 3
"""Epochs in a row with the same loss and chance-level recall before the run is stopped."""
STUCK_CHANGE = 1e-4
"""Relative change of the loss below which an epoch counts as stuck."""


class Watch:
    """Watches the steps and epochs of a run."""

    def __init__(self) -> None:
        self.collapsed_steps = 0

    def step(self, loss: float, embeddings: Mapping[str, torch.Tensor], step: int) -> None:
        """Look at one step.

        Args:
            loss: of the step.
            embeddings: this worker's, (B, D), (B, L, D) or (B, V, D) vectors by name; others are ignored.
            step: 0-based, for the message.

        Raises:
            InputError: the loss is not finite, or embeddings have been one point for long.
        """
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise InputError(
                f"the loss became {loss} at step {step}: the run diverged. Lower optim.lr, raise optim.warmup_share, "
                "use trainer.precision=fp32, or look for broken features; the last checkpoint is intact."
            )
        lengths = {name: resultant_length(embeddings[name]) for name in ("text", "image") if name in embeddings}
        self.collapsed_steps = self.collapsed_steps + 1 if lengths and min(lengths.values()) > COLLAPSED else 0
        if self.collapsed_steps >= PATIENCE_STEPS:
            raise InputError(
                f"all embeddings have been one point for {PATIENCE_STEPS} steps (loss {loss:.4g} at step {step}): the "
                "run collapsed. The hardest-negative loss does this at the start: set loss.warmup_epochs=1, lower "
                "optim.lr, or use loss.name=info_nce."
            )


def resultant_length(vectors: torch.Tensor) -> float:
    """How far vectors (..., D) are one: the length of their mean over the mean of their lengths.

    Returns:
        1 when they are one point, near 0 when they spread; 0 of one row.
    """
    rows = vectors.detach().reshape(-1, vectors.shape[-1]).float()
    tiny = torch.finfo(rows.dtype).tiny
    return float(rows.mean(0).norm() / rows.norm(dim=-1).mean().clamp_min(tiny)) if len(rows) > 1 else 0.0


def check_progress(history: Sequence[Mapping[str, Any]], select_by: str, chance: float) -> None:
    """Stop a run whose loss has stood still at chance level.

    Args:
        history: figures of every epoch so far, in order.
        select_by: the validation figure.
        chance: a value of it that guessing reaches.

    Raises:
        InputError: the loss of the last epochs is the same and the figure is at chance.
    """
    last = [float(row["loss"]) for row in history[-STUCK_EPOCHS - 1 :]]
    if len(last) <= STUCK_EPOCHS or float(history[-1].get(select_by, float("inf"))) > chance:
        return
    spread = (max(last) - min(last)) / max(abs(max(last)), 1e-12)
    if spread < STUCK_CHANGE:
        raise InputError(
            f"the loss has stood at {last[-1]:.5g} for {STUCK_EPOCHS} epochs and {select_by} is "
            f"{history[-1][select_by]:.2f}, no better than chance: the run is stuck. Twice the margin (for a sum, "
            "times the batch) is the value of collapsed embeddings: set loss.warmup_epochs=1, lower optim.lr, or use "
            "loss.name=info_nce."
        )
