"""Rank correlation of a model's scores with people's ratings, by the sampled bootstrap of the CxC paper."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError


class Correlation(NamedTuple):
    """Mean and standard deviation over the samples, times 100."""

    mean: float
    deviation: float


def sampled_spearman(
    queries: npt.NDArray[np.int64],
    ratings: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Correlation:
    """Rank correlation of ratings and scores over random halves of the queries.

    Args:
        queries: of shape (P,), the item that each rated pair belongs to.
        ratings: people's scores, likewise.
        scores: the model's, likewise.
        samples: draws.
        seed: of the draws.
    """
    order = np.argsort(queries, kind="stable")
    items, starts, counts = np.unique(queries[order], return_index=True, return_counts=True)
    half = len(items) // 2
    if half < 2 or not len(queries) == len(ratings) == len(scores) or samples < 1:
        raise InputError(
            f"{len(queries)} pairs of {len(items)} items with {len(ratings)} ratings and {len(scores)} scores cannot "
            f"be correlated in {samples} samples; expected one rating and score per pair and at least 4 items."
        )
    rng = np.random.default_rng(seed)
    found = np.empty(samples)
    for i in range(samples):
        chosen = rng.permutation(len(items))[:half]
        pairs = order[starts[chosen] + rng.integers(0, counts[chosen])]
        found[i] = spearman(ratings[pairs], scores[pairs])
    return Correlation(float(100 * found.mean()), float(100 * found.std()))


def spearman(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two arrays of shape (P,); 0 if one is constant.

    Equal values share their mean rank.
    """
    ranks = average_ranks(left), average_ranks(right)
    centred = [one - one.mean() for one in ranks]
    norm = float(np.sqrt(centred[0] @ centred[0]) * np.sqrt(centred[1] @ centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else 0.0


def average_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ascending 1-based ranks, of the shape (P,) of the values; equal values share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
