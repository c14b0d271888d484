"""The curves of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def curves_png(history: Sequence[Mapping[str, Any]], select_by: str) -> bytes:
    """Loss and validation figure by epoch, side by side, as a PNG."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", select_by), strict=True):
        axes.plot(epochs, [row.get(name, float("nan")) for row in history], marker="o", markersize=3)
        axes.set(xlabel="epoch", title=f"training {name}" if name == "loss" else f"validation {name}")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
