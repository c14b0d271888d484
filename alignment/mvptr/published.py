"""Recall at 1 that the paper prints for retrieval in two steps, and one's own beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.table import Table

from xmatch.evaluation.report import rendered


class PublishedRecall(NamedTuple):
    """Recall at 1 in per cent, of images by text and of texts by image."""

    model: str
    t2i: float
    i2t: float


PUBLISHED: Mapping[str, tuple[PublishedRecall, ...]] = {
    "flickr30k": (PublishedRecall("MVPTR", 84.0, 95.2), PublishedRecall("ALBEF", 82.8, 94.3)),
    "coco_5k": (
        PublishedRecall("MVPTR", 60.1, 77.3),
        PublishedRecall("VinVL", 58.1, 74.6),
        PublishedRecall("ALBEF", 56.8, 73.1),
    ),
}
"""By benchmark, as the page of MVPTR's program prints them (Li et al. 2022, arXiv 2201.12596)."""


def published_text(benchmark: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """A table of one's own figures and the published ones, best first; "" for a benchmark without any.

    Args:
        benchmark: its name, or "".
        figures: `t2i_recall_at_1` and `i2t_recall_at_1` of each step, in per cent.
    """
    if benchmark not in PUBLISHED:
        return ""
    table = Table(title="Recall at 1 beside published figures", title_justify="left")
    table.add_column("model")
    table.add_column("text to image", justify="right")
    table.add_column("image to text", justify="right")
    own = [
        PublishedRecall(f"> this run, {step}", found["t2i_recall_at_1"], found["i2t_recall_at_1"])
        for step, found in figures.items()
    ]
    for row in sorted([*PUBLISHED[benchmark], *own], key=lambda row: -(row.t2i + row.i2t)):
        table.add_row(row.model, f"{row.t2i:.1f}", f"{row.i2t:.1f}")
    return rendered(table)
