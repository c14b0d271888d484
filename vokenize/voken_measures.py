"""How varied the vokens are and how evenly the images are used; pure arithmetic on counts.

Shapes: T token types, N images of the key bank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vokenize.pair_counts import Pairs

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
BUSIEST_SHARE = 0.01
"""Of the images, whose share of all uses is reported."""
Figures = dict[str, float | None]


class TypeTable(NamedTuple):
    """A row for each token type that occurred, by token id; counts are over its different images.

    Attributes:
        token_ids: (T,).
        occurrences: (T,) tokens of the type.
        images: (T,) different images they took.
        max_counts: (T,) tokens that took its commonest image.
        std_counts: (T,) population standard deviation of the counts.
        entropies: (T,) of the counts, in bits; 0 where one image takes all.
        top_images: (T,) the commonest image, the lowest row of equals.
    """

    token_ids: Int64
    occurrences: Int64
    images: Int64
    max_counts: Int64
    std_counts: Float64
    entropies: Float64
    top_images: Int64

    @property
    def mean_counts(self) -> Float64:
        """(T,) tokens for each different image."""
        means: Float64 = self.occurrences / self.images
        return means


def type_table(blocks: Iterable[Pairs]) -> TypeTable:
    """Counts by token type.

    Args:
        blocks: pairs sorted by type; those of a type in one block.
    """
    found = [_of_block(pairs) for pairs in blocks if len(pairs.types)]
    if not found:
        whole, real = np.zeros(0, np.int64), np.zeros(0)
        return TypeTable(whole, whole, whole, whole, real, real, whole)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return TypeTable(*(column[order] for column in columns))


def _of_block(pairs: Pairs) -> TypeTable:
    starts = np.flatnonzero(np.diff(pairs.types, prepend=-1))
    images = np.diff(np.append(starts, len(pairs.types)))
    occurrences = np.add.reduceat(pairs.counts, starts)
    most = np.maximum.reduceat(pairs.counts, starts)
    row_type = np.repeat(np.arange(len(starts)), images)
    spread = np.add.reduceat((pairs.counts - (occurrences / images)[row_type]) ** 2, starts)
    share = pairs.counts / occurrences[row_type]
    commonest = np.flatnonzero(pairs.counts == most[row_type])
    _, first = np.unique(row_type[commonest], return_index=True)
    return TypeTable(
        pairs.types[starts],
        occurrences,
        images,
        most,
        np.sqrt(spread / images),
        np.abs(np.add.reduceat(-share * np.log2(share), starts)),
        pairs.images[commonest[first]],
    )


def diversity(types: TypeTable) -> Figures:
    """How varied the images of a token type are.

    Returns:
        `token_types`; means over token types, as Vokenization's `evaluate_diversity` prints them, of `images`,
        `max_count`, `mean_count` and `std_count` (golden `diversity`); the mean `entropy` in bits; and
        `commonest_image_share`, the share of all tokens that took the commonest image of their type.
    """
    if not len(types.token_ids):
        return {"token_types": 0}
    return {
        "token_types": len(types.token_ids),
        "images": float(np.mean(types.images)),
        "max_count": float(np.mean(types.max_counts)),
        "mean_count": float(np.mean(types.mean_counts)),
        "std_count": float(np.mean(types.std_counts)),
        "entropy": float(np.mean(types.entropies)),
        "commonest_image_share": float(types.max_counts.sum() / types.occurrences.sum()),
    }


def coverage(counts: Int64) -> Figures:
    """How much of the key bank is used: `images_used` and their `share`, of (N,) uses."""
    used = int(np.count_nonzero(counts))
    return {"images_used": used, "share": used / len(counts)}


def hubness(counts: Int64) -> Figures:
    """How unevenly the images of a key bank are used.

    Args:
        counts: (N,) N_k: how often each image is among the k found for a query.

    Returns:
        `never_used`, the share of images with N_k = 0; `busiest_1_percent`, the share of all uses that goes to the
        most used hundredth of the images (one at least); `max_count`; `skewness` of N_k, the third standardised moment
        (Radovanović, Nanopoulos and Ivanović 2010, equation 1), and `gini`, both null where they are not defined.
    """
    total = int(counts.sum())
    busiest = max(1, round(BUSIEST_SHARE * len(counts)))
    return {
        "never_used": float(np.mean(counts == 0)),
        "busiest_1_percent": float(np.sort(counts)[-busiest:].sum() / total) if total else None,
        "max_count": int(counts.max()),
        "skewness": skewness(counts),
        "gini": gini(counts),
    }


def skewness(counts: Int64) -> float | None:
    """The third standardised moment, E[(x - mean)^3] / std^3, of a population; null where all are equal."""
    away = counts - np.mean(counts)
    spread = np.sqrt(np.mean(away**2))
    return float(np.mean((away / spread) ** 3)) if spread else None


def gini(counts: Int64) -> float | None:
    """Mean absolute difference of two draws over twice the mean: 0 all equal, 1 - 1/N one has all; null if all are 0.

    By ranks: sum((2 i - N - 1) x_i) / (N sum(x)), x ascending, i from 1 (Dixon et al. 1987).
    """
    total = float(counts.sum())
    if not total:
        return None
    ranks = np.arange(1, len(counts) + 1)
    return float(((2 * ranks - len(counts) - 1) * np.sort(counts).astype(np.float64)).sum() / (len(counts) * total))
