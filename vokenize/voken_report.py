"""The measures of a voken run as tables for a terminal, as Parquet, and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.table import Table

from vokenize.voken_evaluation import Evaluated, Uses
from vokenize.voken_measures import TypeTable
from xmatch.evaluation.report import rendered

TYPE_SCHEMA = pa.schema(
    [
        pa.field("token_id", pa.int32(), nullable=False),
        ("token", pa.string()),
        ("occurrences", pa.int64()),
        ("images", pa.int64()),
        ("max_count", pa.int64()),
        ("mean_count", pa.float64()),
        ("std_count", pa.float64()),
        ("entropy", pa.float64()),
        ("top_image", pa.int64()),
    ]
)
"""One row a token type, by token id. images: different ones its tokens took; max_count, mean_count, std_count: of how
many tokens took each; entropy: of the same, in bits; top_image: the commonest, a row of the key bank."""
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        ("id", pa.string()),
        ("uri", pa.string()),
        ("token_types", pa.int64()),
        ("best_of_tokens", pa.int64()),
        ("among_k_of_tokens", pa.int64()),
        ("best_of_pieces", pa.int64()),
        ("among_k_of_pieces", pa.int64()),
    ]
)
"""One row an image of the key bank: token types whose tokens took it, and how many tokens and pieces have it as their
best image and among their k; null where the run has no vokens of that level."""
TITLES = {
    "diversity": "Images of a token type",
    "coverage": "Images used",
    "hubness": "How evenly images are used, best image",
    "hubness_at_k": "How evenly images are used, all k",
    "retrieval": "Finding the captioned image, %",
    "agreement": "Agreement with the other run",
}


def type_rows(types: TypeTable, names: Sequence[str] | None) -> pa.Table:
    """A table of TYPE_SCHEMA.

    Args:
        types: of the run.
        names: of all token ids; None: not known.
    """
    named = [None if names is None else names[token] for token in types.token_ids.tolist()]
    columns = [
        types.token_ids,
        named,
        types.occurrences,
        types.images,
        types.max_counts,
        types.mean_counts,
        types.std_counts,
        types.entropies,
        types.top_images,
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TYPE_SCHEMA, strict=True)], schema=TYPE_SCHEMA)


def image_rows(found: Evaluated, ids: Sequence[str | None], uris: Sequence[str | None]) -> pa.Table:
    """A table of IMAGE_SCHEMA; `ids` and `uris` have an entry for each image of the key bank."""
    count = len(found.types_per_image)
    absent = Uses(*(np.zeros(0, np.int64),) * 2)
    tokens, pieces = found.uses.get("token", absent), found.uses.get("sentence", absent)
    types = found.types_per_image if "token" in found.uses else absent.best
    columns: list[Any] = [np.arange(count), list(ids), list(uris), types, *tokens, *pieces]
    arrays = [
        pa.array(column, f.type) if len(column) else pa.nulls(count, f.type)
        for column, f in zip(columns, IMAGE_SCHEMA, strict=True)
    ]
    return pa.table(arrays, schema=IMAGE_SCHEMA)


def figures_text(figures: Mapping[str, Any]) -> str:
    """All figures as tables, a column a level."""
    blocks = []
    for name, title in TITLES.items():
        if name not in figures:
            continue
        columns = {"token": figures[name]} if name == "diversity" else figures[name]
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for level in columns:
            table.add_column(f"by {level}", justify="right")
        for row in next(iter(columns.values()), {}):
            table.add_row(row.replace("_", " "), *(number(figures_of[row]) for figures_of in columns.values()))
        blocks.append(rendered(table))
    return "\n".join(blocks)


def number(value: float | None) -> str:
    """A whole number, a figure with four digits that count, or a dash."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def voken_plot(found: Evaluated, title: str) -> bytes:
    """How images are used (by rank, and the Lorenz curve) and how many images a token type has, as a PNG."""
    from matplotlib.figure import Figure

    has_types = len(found.types.token_ids) > 0
    figure = Figure(figsize=(12 if has_types else 8, 3.8), dpi=120, layout="constrained")
    by_rank, lorenz, *by_type = figure.subplots(1, 3 if has_types else 2)
    for level, uses in found.uses.items():
        counts = np.sort(uses.best[uses.best > 0])[::-1]
        by_rank.plot(np.arange(1, len(counts) + 1), counts, label=f"by {level}")
        lorenz.plot(*lorenz_curve(uses.best), label=f"by {level}")
    by_rank.set(xscale="log", yscale="log", xlabel="image, most used first", ylabel="uses as the best image")
    lorenz.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    lorenz.set(xlabel="share of the images, least used first", ylabel="share of all uses", xlim=(0, 1), ylim=(0, 1))
    for axes in by_type:
        axes.plot(found.types.occurrences, found.types.images, ".", markersize=2, alpha=0.4)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the type", ylabel="different images")
    for axes in (by_rank, lorenz):
        axes.legend()
    for axes in (by_rank, lorenz, *by_type):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def lorenz_curve(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Share of the images, least used first, and the share of all uses that they have; (N + 1,) each, 0 to 1."""
    ascending = np.concatenate([[0], np.cumsum(np.sort(counts))])
    return np.linspace(0, 1, len(ascending)), ascending / max(1, ascending[-1])
