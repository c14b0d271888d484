"""Two-step retrieval: candidates by the two encoders' own vectors, ordered anew by the cross encoder.

Coarse: the best captions of each image and the best images of each caption, by exact inner product. Fine: the cross
encoder's match probability of each such pair; equal ones stay in the coarse order. The original discards the coarse
scores; here they may be added with a weight (golden `mvptr_two_step_retrieval.json`).

Shapes: N images, M captions, P different pairs of both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.rerank.candidates import EMPTY, WAYS, Float32, Int64, Lists, Way, search_lists
from alignment.rerank.figures import Stage, list_ranks
from xmatch.data.vectors import Rows
from xmatch.errors import InputError
from xmatch.evaluation.bootstrap import DEPTHS
from xmatch.evaluation.ranks import MISSED

COARSE, FINE, FUSED = "Coarse", "Fine", "Fused"


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How many candidates the cross encoder sees; the published numbers."""

    captions_per_image: int = 128
    """Captions of each image."""
    images_per_caption: int = 64
    """Images of each caption."""

    def __post_init__(self) -> None:
        """Recall is measured at ten."""
        if min(self.captions_per_image, self.images_per_caption) < max(DEPTHS):
            raise InputError(
                f"pools hold at least {max(DEPTHS)} candidates, for recall is measured so deep; got "
                f"{self.captions_per_image} captions an image and {self.images_per_caption} images a caption."
            )

    def depth(self, way: Way) -> int:
        """Candidates of a query."""
        return self.captions_per_image if way == "i2t" else self.images_per_caption


def coarse_pools(images: Rows, texts: Rows, config: PoolConfig, threads: int = 1) -> dict[Way, Lists]:
    """The candidates of every query by exact search, best first.

    Args:
        images: (N, D).
        texts: (M, D).
        config: how many.
        threads: of the search.
    """
    return {
        "t2i": search_lists(texts, images, config.images_per_caption, threads),
        "i2t": search_lists(images, texts, config.captions_per_image, threads),
    }


class Pairs(NamedTuple):
    """The different pairs of both directions' pools, ascending: a pair that is in both is scored once.

    caption, image: (P,) rows. key: (P,) caption · N + image.
    """

    caption: Int64
    image: Int64
    key: Int64

    def __len__(self) -> int:
        return len(self.key)


def pool_pairs(pools: Mapping[Way, Lists], images: int) -> Pairs:
    """The pairs that the cross encoder has to see.

    Args:
        pools: of both directions.
        images: N.
    """
    keys = np.unique(np.concatenate([_keys(way, pools[way].rows, images) for way in WAYS], axis=None))
    keys = keys[keys >= 0]
    return Pairs(keys // max(1, images), keys % max(1, images), keys)


def _keys(way: Way, rows: Int64, images: int) -> Int64:
    """(Q, K) the key of each place of the lists; negative where it is empty."""
    own = np.arange(len(rows))[:, None]
    caption, image = (own, rows) if way == "t2i" else (rows, own)
    return np.where(rows == EMPTY, -1, caption * images + image)


def pool_scores(way: Way, pool: Lists, pairs: Pairs, scores: Float32, images: int) -> Float32:
    """The scores of pairs at the places of the pools: (Q, K) float32, NaN where a place is empty.

    Args:
        way: of the pools.
        pool: of one direction.
        pairs: of both.
        scores: (P,).
        images: N.

    Raises:
        ValueError: a pair of the pool is not among the pairs.
    """
    keys = _keys(way, pool.rows, images)
    places = np.searchsorted(pairs.key, keys).clip(max=max(0, len(pairs) - 1))
    is_there = keys >= 0
    if not len(pairs) or (pairs.key[places] != keys)[is_there].any():
        raise ValueError("a pair of the pools was not scored")
    return np.where(is_there, scores[places], np.float32(np.nan)).astype(np.float32)


def ordered_pool(pool: Lists, fine: Float32, weight: float = 0.0) -> Lists:
    """A pool ordered by its fine scores, and by `weight` times its coarse ones added to them.

    Args:
        pool: candidates by coarse score.
        fine: (Q, K) of their places.
        weight: of the coarse score; 0: the fine score alone, as in the original.
    """
    scores = fine + np.float32(weight) * pool.scores if weight else fine
    sorted_by = np.where(pool.rows == EMPTY, np.float32(-np.inf), scores)
    order = np.argsort(-sorted_by, axis=1, kind="stable")
    return Lists(np.take_along_axis(pool.rows, order, 1), np.take_along_axis(scores, order, 1))


def pool_recall(pools: Mapping[Way, Lists], caption_image: Int64) -> dict[Way, float]:
    """Per cent of queries whose pool holds a match: more than these the second step cannot find."""
    return {way: float(100.0 * np.mean(list_ranks(way, pools[way], caption_image) != MISSED)) for way in WAYS}


def two_step_stages(
    pools: Mapping[Way, Lists], fine: Mapping[Way, Float32], weights: Mapping[Way, float] | None = None
) -> list[Stage]:
    """The lists after each step.

    Args:
        pools: of both directions.
        fine: scores of their places.
        weights: of the coarse scores in the last stage; none: there is no such stage.
    """
    more: dict[Way, dict[str, Float32]] = {way: {} for way in WAYS}
    stages = [
        Stage(COARSE, {way: pools[way] for way in WAYS}, more),
        Stage(FINE, {way: ordered_pool(pools[way], fine[way]) for way in WAYS}, more),
    ]
    if weights is not None:
        fused = {way: ordered_pool(pools[way], fine[way], weights[way]) for way in WAYS}
        stages.append(Stage(FUSED, fused, more))
    return stages


def recall_fractions(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    """R@1, R@5 and R@10 of ranks of shape (Q,) as fractions, as the original's result file has them."""
    return {f"R@{k}": float(np.mean(ranks <= k)) for k in DEPTHS}
