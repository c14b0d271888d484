"""The files of a result: figures, ranks of every query, a plot, and the page of the worst queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from xmatch.data import files
from xmatch.evaluation.measures import Measured, Request
from xmatch.evaluation.report import number, rank_rows, recall_plot
from xmatch.evaluation.retrieved import retrieved_table
from xmatch.evaluation.worst import worst_page, worst_queries
from xmatch.pages.worst_queries import render_worst

FIGURES_FILE = "retrieval.json"
"""Written last: where it is, the rest is there too."""
RANKS_FILE = "ranks.parquet"
PLOT_FILE = "recall.png"
PAGE_FILE = "worst.html"
RETRIEVED_FILE = "retrieved.parquet"
PAGE_FIGURES = {"rsum": "rsum", "i2t_recall_at_1": "image to text R@1", "t2i_recall_at_1": "text to image R@1"}


def write_results(
    output: str,
    request: Request,
    measured: Measured,
    record: dict[str, Any],
    *,
    title: str,
    worst: int,
    top_k: int = 0,
    threads: int = 1,
) -> list[tuple[str, str]]:
    """Write everything, each file atomically.

    Args:
        output: folder or URI.
        request: what was measured.
        measured: what came of it.
        record: the content of `retrieval.json`.
        title: of plot and page.
        worst: queries of each direction on the page; 0: no page.
        top_k: candidates of every query that are listed; 0: no list.
        threads: of the search for them.

    Returns:
        (what, where) of every file.
    """
    written = [
        ("figures", files.join(output, FIGURES_FILE)),
        ("ranks", files.join(output, RANKS_FILE)),
        ("plot", files.join(output, PLOT_FILE)),
    ]
    files.write_parquet(files.join(output, RANKS_FILE), ranks_table(request, measured))
    i2t, t2i = (np.concatenate([getattr(part, way).ranks for part in measured.parts]) for way in ("i2t", "t2i"))
    files.write_bytes(files.join(output, PLOT_FILE), recall_plot(i2t, t2i, title, measured.intervals))
    if worst:
        queries = worst_queries(request.across, measured.parts, count=worst)
        figures = [(label, number(measured.figures[name])) for name, label in PAGE_FIGURES.items()]
        page = worst_page(queries, request.captions, title=f"Worst queries: {title}", figures=figures)
        files.write_bytes(files.join(output, PAGE_FILE), render_worst(page).encode())
        written.append(("worst queries", files.join(output, PAGE_FILE)))
    retrieved = retrieved_table(request, measured.parts, top_k, threads) if top_k else None
    if retrieved is not None:
        files.write_parquet(files.join(output, RETRIEVED_FILE), retrieved)
        written.append((f"retrieved, top {top_k}", files.join(output, RETRIEVED_FILE)))
    files.write_json(files.join(output, FIGURES_FILE), record)
    return written


def ranks_table(request: Request, measured: Measured) -> pa.Table:
    """The ranks of every query of every task, as RANK_SCHEMA."""
    ids = {"i": request.captions.image_ids, "t": request.captions.caption_ids}
    tables = [
        rank_rows(task.name, task.convention, task.counted, task.fold.tolist(), ids[task.name[0]], ids[task.name[-1]])
        for task in measured.tasks
    ]
    return pa.concat_tables(tables)
