"""Ranks by counting, block by block: no sorting, no full score matrix.

The rank of a true match is one more than the number of candidates with a greater score plus the number of candidates
with an equal score and a lower row: the order in which the search would list them.
Shapes: N images, M captions, D the shared space.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError

BLOCK = 1024
"""Queries scored at a time."""

Ranks = npt.NDArray[np.int64]


def text_to_image_ranks(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], caption_image: npt.NDArray[np.int64]
) -> Ranks:
    """Rank of each caption's own image among all images.

    Args:
        images: (N, D) embeddings.
        texts: (M, D) embeddings.
        caption_image: (M,) row of each caption's image.

    Returns:
        (M,) 1-based ranks.
    """
    _check(images, texts, caption_image)
    ranks = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), BLOCK):
        scores = texts[start : start + BLOCK] @ images.T
        ranks[start : start + BLOCK] = ranks_of(scores, caption_image[start : start + BLOCK])
    return ranks


def image_to_text_ranks(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], caption_image: npt.NDArray[np.int64]
) -> Ranks:
    """Best rank among all captions that any of an image's own captions has.

    Args:
        images: (N, D) embeddings.
        texts: (M, D) embeddings.
        caption_image: (M,) row of each caption's image; every image has at least one caption.

    Returns:
        (N,) 1-based ranks.
    """
    _check(images, texts, caption_image)
    ranks = np.empty(len(images), np.int64)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK] @ texts.T
        own = caption_image[None, :] == np.arange(start, start + len(block))[:, None]
        best = np.argmax(np.where(own, block, -np.inf), axis=1)  # the first of equal ones: the lowest row
        ranks[start : start + BLOCK] = ranks_of(block, best)
    return ranks


def ranks_of(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> Ranks:
    """1-based ranks of one target per row of a (Q, K) score matrix; equal scores count by row."""
    rows = np.arange(len(scores))
    own = scores[rows, targets][:, None]
    before = np.arange(scores.shape[1])[None, :] < targets[:, None]
    counted: Ranks = 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)
    return counted


def _check(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], caption_image: Ranks) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise InputError(f"images {images.shape} and texts {texts.shape} must be matrices of one width.")
    if len(caption_image) != len(texts) or (
        len(texts) and not 0 <= caption_image.min() <= caption_image.max() < len(images)
    ):
        raise InputError(
            f"caption_image must give each of {len(texts)} captions the row of one of {len(images)} images."
        )
    without = np.setdiff1d(np.arange(len(images)), caption_image)
    if len(without):
        raise InputError(f"image {without[0]} has no caption ({len(without)} of {len(images)} have none).")
    for name, rows in (("image", images), ("text", texts)):
        broken = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(broken):
            raise InputError(f"{name} embedding {broken[0]} holds NaN or infinity ({len(broken)} do).")


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Per cent of queries whose rank is at most k."""
    return float(100.0 * np.mean(ranks <= k))
