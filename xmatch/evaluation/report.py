"""Retrieval figures as numbers, ranks as a table, and recall as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from xmatch.evaluation.bootstrap import Interval
from xmatch.evaluation.ranks import MISSED, Counted, Ranks, recall_at_k

DEPTHS = (1, 5, 10)
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
TASKS = {**DIRECTIONS, "t2t": "text to text", "i2i": "image to image"}
RANK_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("convention", pa.string()),
        ("fold", pa.int32()),
        ("query_id", pa.string()),
        ("rank", pa.int64()),
        ("match_id", pa.string()),
    ]
)
"""One row a query. task: i2t, t2i, t2t or i2i; convention: of CxC, else null; fold: from 0; rank: 1-based, of the best
match, null where the query has none; match_id: that match."""


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


def table_text(figures: Mapping[str, float | None], title: str, intervals: Mapping[str, Interval] | None = None) -> str:
    """The figures as a table for a terminal; below each recall its interval, where there is one."""
    table = Table(title=title, title_justify="left")
    for column in ("direction", "R@1", "R@5", "R@10", "median rank", "mean rank"):
        table.add_column(column, justify="left" if column == "direction" else "right")
    for key, name in TASKS.items():
        if f"{key}_recall_at_1" not in figures:
            continue
        recalls = [f"{key}_recall_at_{k}" for k in DEPTHS]
        median = figures.get(f"{key}_median_rank")
        ranks = ["–" if median is None else f"{median:,.0f}", number(figures.get(f"{key}_mean_rank"))]
        table.add_row(name, *(number(figures.get(one)) for one in recalls), *ranks)
        if intervals:
            ranges = (intervals.get(one) for one in recalls)
            table.add_row("", *("" if r is None else f"{r.low:.1f} to {r.high:.1f}" for r in ranges), style="dim")
    table.caption = f"rsum {number(figures.get('rsum'))}"
    if intervals and "rsum" in intervals:
        table.caption += f" ({intervals['rsum'].low:.1f} to {intervals['rsum'].high:.1f})"
    return rendered(table)


def number(value: float | None) -> str:
    """A figure with one decimal, or a dash."""
    return "–" if value is None else f"{value:,.1f}"


def rendered(table: Table, width: int = 100) -> str:
    """A table as text."""
    sink = io.StringIO()
    Console(file=sink, width=width).print(table)
    return sink.getvalue()


def rank_rows(
    task: str,
    convention: str,
    counted: Counted,
    fold: Sequence[int],
    query_ids: Sequence[str],
    candidate_ids: Sequence[str],
) -> pa.Table:
    """The ranks of one task as rows of RANK_SCHEMA; `fold` and `query_ids` have one entry a query."""
    count = len(counted.ranks)
    has_match = counted.best >= 0
    matches = [candidate_ids[row] if row >= 0 else None for row in counted.best.tolist()]
    return pa.table(
        [
            pa.array([task] * count, pa.string()),
            pa.array([convention or None] * count, pa.string()),
            pa.array(fold, pa.int32()),
            pa.array(query_ids, pa.string()),
            pa.array(counted.ranks, pa.int64(), mask=~has_match),
            pa.array(matches, pa.string()),
        ],
        schema=RANK_SCHEMA,
    )


def recall_plot(
    image_to_text: Ranks, text_to_image: Ranks, title: str, intervals: Mapping[str, Interval] | None = None
) -> bytes:
    """Recall as a function of k for both directions, with intervals at 1, 5 and 10, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, ranks in (("i2t", image_to_text), ("t2i", text_to_image)):
        found = ranks[ranks != MISSED]
        deepest = max(10, int(found.max())) if len(found) else 10
        depths = np.unique(np.append(np.geomspace(1, deepest, 60).astype(int), DEPTHS))
        [line] = axes.plot(depths, [recall_at_k(ranks, int(k)) for k in depths], label=DIRECTIONS[name])
        for k in DEPTHS:
            interval = (intervals or {}).get(f"{name}_recall_at_{k}")
            if interval is not None:
                spread = [[interval.value - interval.low], [interval.high - interval.value]]
                axes.errorbar(k, interval.value, np.abs(spread), color=line.get_color(), fmt="o", ms=3.5, capsize=3)
    axes.set(xscale="log", xlabel="k", ylabel="recall at k, %", ylim=(0, 101), title=title)
    axes.set_xticks([1, 5, 10, 100, 1000], labels=["1", "5", "10", "100", "1,000"])
    axes.set_xlim(left=0.9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
