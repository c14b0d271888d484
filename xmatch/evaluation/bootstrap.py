"""How sure a recall is: percentile bootstrap over images.

Captions of one image are not independent, so images are drawn with replacement and bring their captions with them.
The model is fixed; what varies is which test images there happen to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.evaluation.ranks import Ranks

DEPTHS = (1, 5, 10)
BLOCK = 64
"""Resamples drawn at a time."""


class QueryRanks(NamedTuple):
    """Ranks of one gallery's queries.

    Attributes:
        image_to_text: (N,) 1-based ranks.
        text_to_image: (M,) 1-based ranks.
        caption_image: (M,) row of each caption's image.
    """

    image_to_text: Ranks
    text_to_image: Ranks
    caption_image: npt.NDArray[np.int64]


class Interval(NamedTuple):
    """A figure, and the range that holds the given share of its resamples; all in per cent (rsum: their sum)."""

    value: float
    low: float
    high: float


def recall_intervals(
    parts: Sequence[QueryRanks], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Confidence intervals of the six recalls and of rsum.

    Args:
        parts: one entry, or one per fold: each fold is resampled within itself and figures are means over folds.
        samples: resamples.
        level: share of the resamples inside the interval.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        `{i2t,t2i}_recall_at_{1,5,10}` and `rsum`.
    """
    if not parts or samples < 1 or not 0 < level < 1:
        raise InputError(
            f"a bootstrap of {len(parts)} parts, {samples} samples and level {level} cannot be drawn; expected at "
            "least one part, at least one sample, and a level between 0 and 1."
        )
    names = [f"{direction}_recall_at_{k}" for direction in ("i2t", "t2i") for k in DEPTHS]
    rng = np.random.default_rng(seed)
    drawn = np.mean([_resampled(part, samples, rng) for part in parts], axis=0)
    exact = np.mean([_recalls(_hits(part), np.ones((1, len(part.image_to_text)))) for part in parts], axis=0)[0]
    low, high = np.quantile(_with_sum(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    values = zip(_with_sum(exact[None])[0].tolist(), low.tolist(), high.tolist())
    return {name: Interval(*three) for name, three in zip([*names, "rsum"], values)}


def mean_intervals(
    values: npt.NDArray[np.floating],
    image: npt.NDArray[np.int64],
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Confidence intervals of means over queries, whatever each query's figures are.

    Args:
        values: (Q, F) figures of each query.
        image: (Q,) image that each query is, or belongs to; images that have no query are not drawn.
        samples: resamples.
        level: share of the resamples inside the interval.
        seed: of the draws.

    Returns:
        One for each of the F figures, in the unit of `values`.
    """
    if values.ndim != 2 or len(values) != len(image) or not len(image) or samples < 1 or not 0 < level < 1:
        raise InputError(
            f"a bootstrap of values {values.shape} of {len(image)} queries, {samples} samples and level {level} cannot "
            "be drawn; expected at least one query with one image each, one sample, and a level between 0 and 1."
        )
    _, owner = np.unique(image, return_inverse=True)
    images = int(owner.max()) + 1
    columns = [*(np.bincount(owner, column, images) for column in values.T), np.bincount(owner, minlength=images)]
    sums, rng, found = np.stack(columns, axis=1), np.random.default_rng(seed), []
    for start in range(0, samples, BLOCK):
        drawn = _weights(images, min(BLOCK, samples - start), rng) @ sums
        found.append(drawn[:, :-1] / drawn[:, -1:])
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(*three) for three in zip(values.mean(0).tolist(), low.tolist(), high.tolist())]


def _weights(images: int, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(S, N): how often each of N images was drawn for each of S samples."""
    draws = rng.integers(0, images, (samples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(float)


def _hits(part: QueryRanks) -> npt.NDArray[np.float64]:
    """(N, 7): an image's own hits at each depth, its captions' hits at each depth, and its number of captions."""
    images = len(part.image_to_text)
    if len(part.text_to_image) != len(part.caption_image) or not images:
        raise InputError(
            f"{len(part.text_to_image)} text-to-image ranks came with {len(part.caption_image)} rows of caption_image "
            f"and {images} images; expected one row per caption and at least one image."
        )
    columns = [(part.image_to_text <= k).astype(float) for k in DEPTHS]
    for weights in (*((part.text_to_image <= k) for k in DEPTHS), np.ones(len(part.caption_image))):
        columns.append(np.bincount(part.caption_image, weights, minlength=images))
    return np.stack(columns, axis=1)


def _recalls(hits: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(S, 6) recalls in per cent when image n counts `weights[s, n]` times."""
    sums = weights @ hits
    i2t, t2i = sums[:, :3] / weights.sum(1, keepdims=True), sums[:, 3:6] / sums[:, 6:]
    return 100.0 * np.concatenate([i2t, t2i], axis=1)


def _resampled(part: QueryRanks, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(S, 6) recalls of S samples of a part, a block of samples at a time."""
    hits = _hits(part)
    images, found = len(hits), []
    for start in range(0, samples, BLOCK):
        found.append(_recalls(hits, _weights(images, min(BLOCK, samples - start), rng)))
    return np.concatenate(found)


def _with_sum(recalls: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(S, 6) recalls and their sum behind them, (S, 7)."""
    return np.concatenate([recalls, recalls.sum(1, keepdims=True)], axis=1)
