"""One's own figures beside those that the papers print, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from xmatch.evaluation.bootstrap import Interval
from xmatch.evaluation.published import CXC, CXC_CORRELATIONS, PUBLISHED, VSE_INFTY, Published
from xmatch.evaluation.report import number, rendered, table_text

Figures = Mapping[str, float | None]
HERE = "this run"
UNCHECKED = "†"
DEPTHS = (1, 5, 10)


def comparison_text(benchmark: str, figures: Figures, intervals: Mapping[str, Interval], title: str) -> str:
    """Every table of one benchmark: its own figures with intervals, then beside the published ones.

    Args:
        benchmark: name of a benchmark, or "" for any other split.
        figures: of this run.
        intervals: of those figures that have one.
        title: of the first table.
    """
    tables = [table_text(figures, title, intervals)]
    if benchmark in PUBLISHED:
        tables.append(_recall_table(PUBLISHED[benchmark], figures))
    elif benchmark == "cxc":
        tables += [_convention_table(figures), _cxc_table(figures), _correlation_table(figures)]
    elif benchmark == "eccv":
        tables += [_eccv_table(figures, intervals), _recall_table(PUBLISHED["coco_5k"], figures, "COCO 5K")]
    elif benchmark:
        tables.append(f"No published figures of {benchmark} are at hand.\n")
    return "\n".join(tables)


def _recall_table(rows: tuple[Published, ...], figures: Figures, of: str = "") -> str:
    """Sorted by rsum, best first, this run in its place."""
    table = Table(title=f"Beside published figures{of and f' of {of}'}", title_justify="left")
    table.add_column("model: image features, text encoder")
    for way in ("i2t", "t2i"):
        for k in DEPTHS:
            table.add_column(f"{way}\nR@{k}", justify="right")
    table.add_column("\nrsum", justify="right")
    lines: list[tuple[float, tuple[str, ...], bool]] = []
    for row in rows:
        mark = "" if row.source == VSE_INFTY else f" {UNCHECKED}"
        name = f"{row.model}{' ensemble' if row.is_ensemble else ''}: {row.image}, {row.text}{mark}"
        cells = (name, *(f"{value:.1f}" for value in (*row.i2t, *row.t2i)), f"{row.rsum:.1f}")
        lines.append((row.rsum, cells, False))
    own = [figures.get(f"{way}_recall_at_{k}") for way in ("i2t", "t2i") for k in DEPTHS]
    lines.append((figures.get("rsum") or 0.0, (HERE, *map(number, own), number(figures.get("rsum"))), True))
    for _, cells, is_own in sorted(lines, key=lambda line: -line[0]):
        table.add_row(*(f"> {cells[0]}" if is_own else cells[0], *cells[1:]))
    table.caption = f"{UNCHECKED} from memory, not checked against the paper"
    return rendered(table)


def _cxc_table(figures: Figures) -> str:
    table = Table(title="CxC recall beside published figures", title_justify="left")
    table.add_column("model")
    tasks = [(task, k) for task in ("i2t", "t2i", "t2t", "i2i") for k in (1, 5)]
    for task, k in tasks:
        table.add_column(f"{task.upper()}\nR@{k}", justify="right")
    for row in CXC:
        table.add_row(row.model, *(f"{value:.1f}" for value in (*row.i2t, *row.t2i, *row.t2t, *row.i2i)))
    table.add_row(f"> {HERE}", *(number(figures.get(f"{task}_recall_at_{k}")) for task, k in tasks))
    return rendered(table)


def _convention_table(figures: Figures) -> str:
    table = Table(title="CxC recall in both conventions of positives", title_justify="left")
    table.add_column("convention")
    table.add_column("task")
    for column in ("R@1", "R@5", "R@10", "queries"):
        table.add_column(column, justify="right")
    for convention, prefix in (("vse_infty", ""), ("eccv_caption", "eccv_caption_")):
        for task in ("i2t", "t2i", "t2t", "i2i"):
            queries = figures.get(f"{prefix}{task}_queries")
            recalls = [number(figures.get(f"{prefix}{task}_recall_at_{k}")) for k in DEPTHS]
            table.add_row(convention, task.upper(), *recalls, "–" if queries is None else f"{queries:,.0f}")
    return rendered(table)


def _correlation_table(figures: Figures) -> str:
    table = Table(title="Correlation with people's ratings, times 100", title_justify="left")
    table.add_column("model")
    for kind in ("STS", "SIS", "SITS"):
        table.add_column(kind, justify="right")
    for row in CXC_CORRELATIONS:
        mark = f" {UNCHECKED}"
        table.add_row(row.model + mark, *(f"{value:.1f}" for value in (row.sts, row.sis, row.sits)))
    cells = []
    for kind in ("sts", "sis", "sits"):
        mean, deviation = figures.get(f"{kind}_correlation"), figures.get(f"{kind}_correlation_deviation")
        cells.append(number(mean) if deviation is None else f"{number(mean)} ± {deviation:.1f}")
    table.add_row(f"> {HERE}", *cells)
    table.caption = f"{UNCHECKED} from memory, not checked against the paper"
    return rendered(table)


def _eccv_table(figures: Figures, intervals: Mapping[str, Interval]) -> str:
    table = Table(title="ECCV Caption, per cent", title_justify="left")
    names = {"map_at_r": "mAP@R", "r_precision": "R-Precision", "recall_at_1": "R@1"}
    table.add_column("direction")
    for heading in (*names.values(), "PMRP"):
        table.add_column(heading, justify="right")
    for way, name in (("i2t", "image to text"), ("t2i", "text to image")):
        keys = [*(f"eccv_{way}_{one}" for one in names), f"pmrp_{way}"]
        table.add_row(name, *(number(figures.get(key)) for key in keys))
        ranges = (intervals.get(key) for key in keys)
        table.add_row("", *("" if r is None else f"{r.low:.1f} to {r.high:.1f}" for r in ranges), style="dim")
    return rendered(table)
