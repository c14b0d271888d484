"""The exact score of a pair whose score is a sum of maxima, rounded once to float32.

Shapes: N images, T texts, D width of a part, V views of an image in a part, P pairs of an image and a text.

A part's sums are in double precision, off by at most g |k| |q| (docs/search.md, 1.), and so is the largest of them.
Where both ends of the interval around the sum over the parts round to the same float32, that is the score; elsewhere
each part's best view is found by the sign of an exact difference, and the products of these views are summed exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.search.exact import LOST_BELOW
from xmatch.search.factored import FactoredVectors, Part
from xmatch.search.scores import Float32, Float64, Int64, PairScores, decode, exact_sum, sum_error

PAIRS_AT_ONCE = 4096
"""Texts that are scored with one image at a time."""
ADDED = 2.0**-52
"""What adding one part to the others may be off, as a part of the sizes added; twice the unit of double precision."""
FLOAT_SUM = 1.05 * 2.0**-24
"""What a float32 sum may be off for each number added, as a part of |k| |q|."""


class Lengths(NamedTuple):
    """Upper bounds of L2 norms: of every part's rows, (N V,) each, and of the texts' columns of every part, (T,)."""

    images: tuple[Float64, ...]
    texts: tuple[Float64, ...]


class Near(NamedTuple):
    """Results wanted for each query, and what apart two scores must be to stay different when rounded."""

    k: int
    margin: float


class DoubleScores(NamedTuple):
    """Sums of maxima in double precision, and how far each may be off, (N, T) both."""

    sums: Float64
    errors: Float64


def double_scores(
    images: FactoredVectors, rows: slice, texts: Float32, lengths: Lengths, chosen: Int64 | slice
) -> DoubleScores:
    """Scores of consecutive images and chosen texts.

    Args:
        images: the images.
        rows: which of them.
        texts: (T, E) texts.
        lengths: of all images and texts.
        chosen: rows of the texts.
    """
    wide = texts[chosen].astype(np.float64)
    sums = np.zeros((rows.stop - rows.start, len(wide)))
    errors, sizes = np.zeros_like(sums), np.zeros_like(sums)
    for part, columns, image_lengths, text_lengths in zip(images.parts, images.columns, *lengths, strict=True):
        found = _view_sums(part, rows, wide[:, columns]).max(1)
        largest = image_lengths[_views(part, rows)].reshape(-1, part.views).max(1)
        errors += sum_error(part.rows.shape[1]) * largest[:, None] * text_lengths[chosen]
        sums += found
        sizes += np.abs(found)
    return DoubleScores(sums, errors + ADDED * len(images.parts) * sizes)


def still_near(
    images: FactoredVectors, texts: Float32, lengths: Lengths, pairs: tuple[Int64, Int64], queries: Int64, near: Near
) -> npt.NDArray[np.bool_]:
    """Which of many candidates float32 products of the vectors themselves cannot exclude.

    Args:
        images: N images.
        texts: (T, E).
        lengths: of all images and texts; no product of two of them reaches 2^126.
        pairs: rows of the images (P,) and of the texts (P,).
        queries: (P,) which of the two is the query, as its row; ascending.
        near: how many results are wanted, and how far apart scores stay different.
    """
    lower, upper = np.empty(len(queries)), np.empty(len(queries))
    for image, places in _by_image(pairs[0]):
        chosen = pairs[1][places]
        asked, total, room = texts[chosen], np.zeros(len(chosen)), np.zeros(len(chosen))
        rows = slice(image, image + 1)
        for part, columns, own, other in zip(images.parts, images.columns, *lengths, strict=True):
            width, largest, sizes = part.rows.shape[1], float(own[_views(part, rows)].max()), other[chosen]
            best = (decode(part.rows[_views(part, rows)]) @ asked[:, columns].T).max(0).astype(np.float64)
            total += best
            room += FLOAT_SUM * (width + 2) * largest * sizes + ADDED * np.abs(best)
            room += (width + 2 + math.sqrt(width) * (largest + sizes)) * LOST_BELOW
        lower[places], upper[places] = total - room, total + room
    order = np.lexsort((-lower, queries))
    firsts = np.searchsorted(queries, queries)
    counts = np.searchsorted(queries, queries, "right") - firsts
    lines = lower[order][firsts + np.minimum(near.k, counts) - 1]
    kept: npt.NDArray[np.bool_] = (upper >= lines - near.margin) | (counts < near.k)
    return kept


def pair_scores(images: FactoredVectors, texts: Float32, lengths: Lengths, pairs: tuple[Int64, Int64]) -> PairScores:
    """The scores of chosen pairs, each rounded once.

    Args:
        images: N images.
        texts: (T, E).
        lengths: of all images and texts.
        pairs: rows of the images (P,) and of the texts (P,), in any order; reads each image once.
    """
    image_rows, text_rows = pairs
    scores = np.empty(len(image_rows), np.float32)
    exact_sums = 0
    for image, places in _by_image(image_rows):
        found = double_scores(images, slice(image, image + 1), texts, lengths, text_rows[places])
        with np.errstate(over="ignore"):
            low = (found.sums[0] - found.errors[0]).astype(np.float32)
            high = (found.sums[0] + found.errors[0]).astype(np.float32)
        scores[places] = low
        for place in places[low != high]:
            scores[place] = exact_score(images, image, texts[text_rows[place]])
            exact_sums += 1
    scores += np.float32(0)  # never -0
    return PairScores(scores, exact_sums)


def _by_image(image_rows: Int64) -> Iterator[tuple[int, Int64]]:
    """Every image of pairs (P,), with the places of some of its pairs."""
    order = np.argsort(image_rows, kind="stable")
    edges = np.flatnonzero(np.diff(image_rows[order], prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(edges):
        for first in range(start, stop, PAIRS_AT_ONCE):
            yield int(image_rows[order[start]]), order[first : min(stop, first + PAIRS_AT_ONCE)]


def exact_score(images: FactoredVectors, image: int, text: Float32) -> np.float32:
    """The score of one pair by exact sums alone, however slowly."""
    chosen = []
    for part, columns in zip(images.parts, images.columns, strict=True):
        wide = text[columns].astype(np.float64)
        products = decode(part.rows[_views(part, slice(image, image + 1))]).astype(np.float64) * wide
        best = products[0]
        for other in products[1:]:
            if math.fsum([*other.tolist(), *(-best).tolist()]) > 0:  # of an exact sum fsum keeps the sign
                best = other
        chosen.append(best)
    return exact_sum(np.concatenate(chosen))


def _views(part: Part, rows: slice) -> slice:
    return slice(rows.start * part.views, rows.stop * part.views)


def _view_sums(part: Part, rows: slice, texts: Float64) -> Float64:
    """(N, V, T) sums in double precision."""
    block = decode(part.rows[_views(part, rows)]).astype(np.float64)
    found: Float64 = (block @ texts.T).reshape(-1, part.views, len(texts))
    return found
