"""Recall of ranked lists, before and after, with intervals, and the interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from alignment.rerank.candidates import EMPTY, WAYS, Float32, Int64, Lists, Way
from xmatch.evaluation.bootstrap import DEPTHS, Interval, QueryRanks, mean_intervals, recall_intervals
from xmatch.evaluation.measures import ConfidenceConfig
from xmatch.evaluation.ranks import MISSED, Ranks
from xmatch.evaluation.report import DIRECTIONS, number, rendered

NAMES = (*(f"recall_at_{k}" for k in DEPTHS), "mean_recall")
"""Figures of a direction in per cent; the last is the mean of the others, AGREE's score."""

ListsOf = Mapping[Way, Lists]


class Stage(NamedTuple):
    """Both directions' lists after one step.

    Attributes:
        name: of the step.
        lists: of both directions.
        more: columns of numbers that an output of each direction has beside them.
    """

    name: str
    lists: dict[Way, Lists]
    more: dict[Way, dict[str, Float32]]


class StageFigures(NamedTuple):
    """Figures of one stage; names are `{way}_{figure of NAMES}`, all in per cent.

    Attributes:
        name: of the stage.
        values: figures with their intervals.
        gains: difference to the stage before, query by query, with intervals; empty for the first.
    """

    name: str
    values: dict[str, Interval]
    gains: dict[str, Interval]


def list_ranks(way: Way, lists: Lists, caption_image: Int64) -> Ranks:
    """1-based place of the first true match in every list; MISSED where it holds none.

    Args:
        way: t2i: lists of the M captions hold images; i2t: lists of the N images hold captions.
        lists: of all queries.
        caption_image: (M,) row of each caption's image.
    """
    rows = lists.rows
    own = caption_image[:, None] if way == "t2i" else np.arange(len(rows))[:, None]
    owner = rows if way == "t2i" else caption_image[rows]
    is_match = (owner == own) & (rows != EMPTY)
    if not rows.shape[1]:
        return np.full(len(rows), MISSED)
    return np.where(is_match.any(1), is_match.argmax(1) + 1, MISSED)


def recalls(ranks: Ranks) -> npt.NDArray[np.float64]:
    """Per cent of each query for NAMES, (Q, 4): its own recalls are 0 or 100."""
    hits = np.stack([100.0 * (ranks <= k) for k in DEPTHS], axis=1)
    return np.concatenate([hits, hits.mean(1, keepdims=True)], axis=1)


def mean_recall(ranks: Ranks) -> float:
    """The mean of R@1, R@5 and R@10, in per cent."""
    return float(recalls(ranks)[:, -1].mean())


def stage_figures(
    stages: Sequence[Stage], caption_image: Int64, images: int, confidence: ConfidenceConfig
) -> list[StageFigures]:
    """Figures of every stage, and what each gained over the one before.

    Images are drawn with their captions; a gain is the mean of differences of the very same queries, so its interval
    tells whether the step helps rather than how hard the split is.

    Args:
        stages: in their order.
        caption_image: (M,) row of each caption's image.
        images: N.
        confidence: how the intervals are drawn.
    """
    drawn = {"samples": confidence.resamples, "seed": confidence.seed}
    found: list[StageFigures] = []
    owners: dict[Way, Int64] = {"t2i": caption_image, "i2t": np.arange(images)}
    before: dict[Way, npt.NDArray[np.float64]] = {}
    for stage in stages:
        ranks = {way: list_ranks(way, stage.lists[way], caption_image) for way in WAYS}
        values = recall_intervals(
            [QueryRanks(ranks["i2t"], ranks["t2i"], caption_image)], level=confidence.level, **drawn
        )
        gains: dict[str, Interval] = {}
        for way in WAYS:
            each = recalls(ranks[way])
            [mean] = mean_intervals(each[:, -1:], owners[way], level=confidence.level, **drawn)
            values[f"{way}_mean_recall"] = mean
            if way in before:
                drawn_gains = mean_intervals(each - before[way], owners[way], level=confidence.level, **drawn)
                gains |= {f"{way}_{name}": one for name, one in zip(NAMES, drawn_gains)}
            before[way] = each
        found.append(StageFigures(stage.name, values, gains))
    return found


def losses(figures: Sequence[StageFigures], name: str) -> list[str]:
    """Sentences on every direction in which a stage lowered R@1 or the mean recall."""
    found = []
    for stage in figures:
        for way in WAYS:
            worse = [one for one in ("recall_at_1", "mean_recall") if _is_loss(stage.gains.get(f"{way}_{one}"))]
            if stage.name == name and worse:
                said = (f"{label(one)} by {_range(stage.gains[f'{way}_{one}'])}" for one in worse)
                found.append(f"{name} lowers {DIRECTIONS[way]} {' and '.join(said)}; switch it off, or tune it")
    return found


def _is_loss(gain: Interval | None) -> bool:
    return gain is not None and gain.value < 0


def label(name: str) -> str:
    """A figure's name as a table shows it."""
    return name.replace("recall_at_", "R@").replace("mean_recall", "mean recall")


def _range(gain: Interval) -> str:
    return f"{gain.value:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def table_text(figures: Sequence[StageFigures], title: str) -> str:
    """Before and after as a table for a terminal: each figure, its interval, and the gain over the stage before."""
    table = Table(title=title, title_justify="left")
    table.add_column("direction")
    table.add_column("lists")
    for name in NAMES:
        table.add_column(label(name), justify="right")
    for way in WAYS:
        for stage in figures:
            values = [stage.values[f"{way}_{name}"] for name in NAMES]
            table.add_row(DIRECTIONS[way], stage.name, *(number(one.value) for one in values))
            table.add_row("", "", *(f"{one.low:.1f} to {one.high:.1f}" for one in values), style="dim")
            if stage.gains:
                table.add_row("", "gain", *(_range(stage.gains[f"{way}_{name}"]) for name in NAMES), style="dim")
    return rendered(table, width=120)
