"""Retrieval figures as numbers, a table, and a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from xmatch.evaluation.ranks import Ranks, recall_at_k

DEPTHS = (1, 5, 10)
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


def retrieval_figures(image_to_text: Ranks, text_to_image: Ranks) -> dict[str, float]:
    """The field's figures of both directions.

    Args:
        image_to_text: (N,) 1-based ranks.
        text_to_image: (M,) 1-based ranks.

    Returns:
        `{i2t,t2i}_recall_at_{1,5,10}` in per cent, `…_median_rank` and `…_mean_rank` (1-based), and `rsum`, the sum of
        the six recalls.
    """
    figures: dict[str, float] = {}
    for name, ranks in (("i2t", image_to_text), ("t2i", text_to_image)):
        figures |= {f"{name}_recall_at_{k}": recall_at_k(ranks, k) for k in DEPTHS}
        figures[f"{name}_median_rank"] = float(np.floor(np.median(ranks)))
        figures[f"{name}_mean_rank"] = float(np.mean(ranks))
    figures["rsum"] = sum(value for key, value in figures.items() if "_recall_at_" in key)
    return figures


def table_text(figures: Mapping[str, float], title: str) -> str:
    """The figures as a table for a terminal."""
    table = Table(title=title)
    for column in ("direction", "R@1", "R@5", "R@10", "median rank", "mean rank"):
        table.add_column(column, justify="left" if column == "direction" else "right")
    for key, name in DIRECTIONS.items():
        recalls = [f"{figures[f'{key}_recall_at_{k}']:.1f}" for k in DEPTHS]
        table.add_row(name, *recalls, f"{figures[f'{key}_median_rank']:.0f}", f"{figures[f'{key}_mean_rank']:.1f}")
    table.caption = f"rsum {figures['rsum']:.1f}"
    sink = io.StringIO()
    Console(file=sink, width=100).print(table)
    return sink.getvalue()


def recall_plot(image_to_text: Ranks, text_to_image: Ranks, title: str) -> bytes:
    """Recall as a function of k for both directions, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for ranks, name in ((image_to_text, "image to text"), (text_to_image, "text to image")):
        depths = np.unique(np.geomspace(1, max(10, int(ranks.max())), 60).astype(int))
        axes.plot(depths, [recall_at_k(ranks, int(k)) for k in depths], label=name)
    axes.set(xscale="log", xlabel="k", ylabel="recall at k, %", ylim=(0, 101), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
