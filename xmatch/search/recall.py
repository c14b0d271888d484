"""How much of the exact answer an approximate search finds.

Shapes: Q queries, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.search.contract import TopK


class Recall(NamedTuple):
    """How much of the exact answer an approximate search finds.

    Attributes:
        recall: hits / results.
        low: lower end of its 95 % interval.
        high: upper end.
        hits: approximate results with a score of the exact k-th best or more; equal scores are equally good.
        results: exact results in all.
        queries: queries asked.
        k: results per query.
    """

    recall: float
    low: float
    high: float
    hits: int
    results: int
    queries: int
    k: int


def recall_at_k(approximate: TopK, exact: TopK, queries: npt.NDArray[np.floating], k: int) -> Recall:
    """How much of the exact top k an approximate search finds, on a sample of queries.

    Args:
        approximate: the search in question.
        exact: exact search over the same keys.
        queries: (Q, D), a random sample of those that will be asked; at least one.
        k: results per query.

    Raises:
        ValueError: there are no queries, or no keys.
    """
    true, found = exact.search(queries, k), approximate.search(queries, k)
    is_result = true.ids >= 0
    if not is_result.any():
        raise ValueError(f"recall needs queries and keys, got {len(queries)} queries and {exact.key_count} keys")
    depth = int(is_result.sum(1).max())
    hits = int(((found.scores >= true.scores[:, depth - 1 : depth]) & (found.ids >= 0)).sum())
    results = int(is_result.sum())
    low, high = wilson_interval(hits / results, len(queries))
    return Recall(hits / results, low, high, hits, results, len(queries), k)


def wilson_interval(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927); 95 % unless told.

    Trials here are queries, not results: hits of one query depend on each other, and a mean of values between 0 and 1
    varies no more than a coin with the same mean, so the interval is too wide rather than too narrow.

    Args:
        share: hits by trials, from 0 to 1.
        trials: at least 1.
        z: quantile of the normal distribution.
    """
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - reach), min(1.0, middle + reach)
