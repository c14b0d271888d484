"""The files of a re-ranking: lists of every stage, figures, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.original_files.predictions import write_prediction_lines
from alignment.rerank.candidates import WAYS, predictions_table
from alignment.rerank.explanation import Explained, changed_queries, explain
from alignment.rerank.figures import Stage, StageFigures
from alignment.rerank.inputs import SIDES
from alignment.rerank.page import PageMaker, render_rerank, rerank_page
from alignment.rerank.pipeline import Vectors
from alignment.rerank.settings import RerankSettings
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.evaluation.report import DIRECTIONS

FIGURES_FILE = "rerank.json"
"""Written last: where it is, the rest is there too."""
PAGE_FILE = "rerank.html"
LISTS_FOLDER = "lists"


def write_lists(
    output: str, stages: Sequence[Stage], gallery: CaptionSet, top_k: int, *, in_original_form: bool
) -> list[tuple[str, str]]:
    """Write the lists of every stage as predictions tables, in lists/{before,egr,tbr}.

    Args:
        output: folder.
        stages: to be written.
        gallery: the split.
        top_k: candidates of every query.
        in_original_form: write AGREE's JSONL beside them.

    Returns:
        (what, where) of every folder.
    """
    ids = {"t2i": (gallery.caption_ids, gallery.image_ids), "i2t": (gallery.image_ids, gallery.caption_ids)}
    written = []
    for stage in stages:
        folder = files.join(output, LISTS_FOLDER, stage.name.lower())
        for way in WAYS:
            more = {name: values[:, :top_k] for name, values in stage.more[way].items()}
            table = predictions_table(stage.lists[way].first(top_k), *ids[way], more)
            path = files.join(folder, SIDES[way])
            files.write_parquet(f"{path}.parquet", table)
            if in_original_form:
                write_prediction_lines(f"{path}.jsonl", table, "query_id" if way == "t2i" else "image_id")
        written.append((f"lists {stage.name}", folder))
    return written


def plain_figures(figures: Sequence[StageFigures]) -> dict[str, dict[str, float]]:
    """Figures in per cent by stage, in small letters, and name."""
    return {stage.name.lower(): {name: one.value for name, one in stage.values.items()} for stage in figures}


def stage_values(figures: Sequence[StageFigures]) -> list[dict[str, Any]]:
    """Figures of every stage as plain values for JSON."""
    return [
        {
            "stage": stage.name,
            "figures": {name: one._asdict() for name, one in stage.values.items()},
            "gains": {name: one._asdict() for name, one in stage.gains.items()},
        }
        for stage in figures
    ]


def explained_sections(
    stages: Sequence[Stage],
    vectors: Vectors | None,
    settings: RerankSettings,
    gallery: CaptionSet,
    *,
    count: int,
    depth: int,
) -> list[tuple[str, list[Explained]]]:
    """Headings with the queries whose matches moved the most.

    Args:
        stages: the first and the last are compared.
        vectors: of the split; None where lists were given.
        settings: of the re-ranking.
        gallery: the split.
        count: queries of each kind.
        depth: candidates shown of each.
    """
    owners, sections = gallery.caption_image, []
    for way in WAYS:
        for chosen, what in zip(changed_queries(way, stages, owners, count), ("rose", "fell")):
            explained = [explain(way, query, stages, vectors, settings, owners, depth) for query in chosen]
            sections.append((f"{DIRECTIONS[way].capitalize()}: matches that {what}", explained))
    return sections


def write_page(
    path: str,
    sections: Sequence[tuple[str, Sequence[Explained]]],
    maker: PageMaker,
    figures: Sequence[StageFigures],
    title: str,
) -> None:
    """Write the page of a re-ranking; at its head stands R@1 of every stage."""
    shown = [
        (f"{DIRECTIONS[way]} R@1, {stage.name}", f"{stage.values[f'{way}_recall_at_1'].value:.1f}")
        for way in WAYS
        for stage in figures
    ]
    page = rerank_page(sections, maker, title=title, figures=shown)
    files.write_bytes(path, render_rerank(page).encode())
