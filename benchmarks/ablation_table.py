"""The table of an ablation: mean and deviation of every arm, and paired tests against one of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from xmatch.evaluation.paired import paired_test

Figures = dict[str, dict[int, dict[str, float]]]
"""Of each arm, by seed: metric to value."""


def summary(name: str, baseline: str, metrics: Sequence[str], figures: Figures) -> dict[str, Any]:
    """Every arm's values by seed, mean, sample deviation, and paired test over the seeds that `baseline` has too."""
    arms: dict[str, dict[str, Any]] = {}
    for arm, by_seed in figures.items():
        shared = [seed for seed in by_seed if seed in figures[baseline]]
        arms[arm] = {}
        for metric in metrics:
            own = [row[metric] for row in by_seed.values()]
            arms[arm][metric] = {
                "seeds": {str(seed): row[metric] for seed, row in by_seed.items()},
                "n": len(own),
                "mean": statistics.fmean(own) if own else None,
                "deviation": statistics.stdev(own) if len(own) > 1 else None,
            }
            if shared and arm != baseline:
                pairs = [[figures[side][seed][metric] for seed in shared] for side in (arm, baseline)]
                arms[arm][metric]["against_baseline"] = paired_test(*pairs)._asdict()
    return {"name": name, "baseline": baseline, "metrics": list(metrics), "arms": arms}


def markdown(content: dict[str, Any]) -> str:
    """A summary, with its lists of failed and missing runs, as Markdown."""
    lines = [f"# {content['name']}", ""]
    for metric in content["metrics"]:
        lines += [
            f"## {metric}",
            "",
            f"| arm | n | mean ± sd | minus {content['baseline']} | pairs | t | p | by seed |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for arm, rows in content["arms"].items():
            row, test = rows[metric], rows[metric].get("against_baseline", {})
            mean = f"{shown(row['mean'], '.2f')} ± {shown(row['deviation'], '.2f')}"
            tested = [
                shown(test.get(key), form)
                for key, form in (("difference", "+.2f"), ("n", "d"), ("t", ".2f"), ("p", ".4f"))
            ]
            by_seed = ", ".join(f"{seed}: {value:.2f}" for seed, value in row["seeds"].items())
            lines.append(f"| {' | '.join([arm, str(row['n']), mean, *tested, by_seed])} |")
        lines.append("")
    lines += ["± is the sample deviation over seeds; p is two-sided, paired by seed, not corrected for many arms.", ""]
    for title in ("failed", "missing"):
        rows = [f"- {row['arm']}, seed {row['seed']}: {row['why']}" for row in content[title]]
        lines += [f"## {title.capitalize()} runs", "", *rows, ""] if rows else []
    return "\n".join(lines)


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
