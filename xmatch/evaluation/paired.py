"""Student's paired test: whether one way is better than another over the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

ROUNDING = 1e-12
"""Spread of the differences, relative to the values, below which they count as all equal."""


class Paired(NamedTuple):
    """Outcome of a paired test.

    t and p are null where they are not defined: for fewer than two pairs, or where all differences are equal.
    """

    n: int
    difference: float
    deviation: float | None
    t: float | None
    p: float | None


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Student's two-sided paired test of `values` against `baseline`, pair by pair; there is at least one pair."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    deviation = statistics.stdev(differences) if n > 1 else None
    if deviation is None or deviation <= ROUNDING * max(map(abs, [*values, *baseline])):
        return Paired(n, mean, deviation, None, None)
    t = mean / (deviation / math.sqrt(n))
    return Paired(n, mean, deviation, t, student_p(t, n - 1))


def student_p(t: float, df: int) -> float:
    """Two-sided p of Student's t for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(abs(t) / math.sqrt(df))
    sin, cos, odd = math.sin(angle), math.cos(angle), df % 2
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, df, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    inside = 2 / math.pi * (angle + sin * total) if odd else sin * total
    return min(1.0, max(0.0, 1.0 - inside))
