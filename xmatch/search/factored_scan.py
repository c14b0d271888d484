"""Which pairs of an image and a text may be among the best: every block of scores once, for both directions.

Products are bfloat16 where the processor multiplies that fast, else float32. Of every pair a lower and an upper bound
of the true score are known; the k-th largest lower bound of a query, so far, is its line, and a pair whose upper bound
does not reach the line is none of the best (docs/search.md, 8.).

Shapes: N images, T texts, D width of a part, V views, k results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xmatch.search.exact import LOST_BELOW
from xmatch.search.factored import FactoredVectors
from xmatch.search.scores import Float32, Float64, Int64, Rows, blocks, decode, norms

TEXTS_AT_ONCE = 4096
PRODUCTS = 1 << 23
"""Scores of views held at a time: 16 MiB of bfloat16."""
VALUES = 1 << 24
"""Values of images rounded at a time."""
MOST_CANDIDATES = 1 << 13
"""Candidates of one query, beyond four for each result, from which on it is scored with everything."""
STORED = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-20}
"""What storing a product and adding parts may change, as a part of the stored sizes."""


class Rounded(NamedTuple):
    """What rounding rows to the products' type does.

    Attributes:
        sizes: (R,) norms of the rows, no smaller than the true ones.
        lost: (R,) norms of what rounding takes from them, likewise.
    """

    sizes: Float64
    lost: Float64


class Candidates(NamedTuple):
    """Pairs that may be among the best of their query, and which queries have all of theirs here.

    Attributes:
        queries: (P,) ascending.
        items: (P,).
        is_sure: (Q,).
    """

    queries: Int64
    items: Int64
    is_sure: npt.NDArray[np.bool_]


def nothing_sure(queries: int) -> Candidates:
    """No candidates, and every query still open."""
    return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(queries, np.bool_))


class Depths(NamedTuple):
    """Results for each text, and for each image; 0 skips a direction."""

    texts: int
    images: int


def rounding_margin(reach: float) -> float:
    """Scores up to `reach` that differ by more than this are still different, in that order, as float32."""
    return 2.0**-23 * reach + 2.0**-149


def rounded(rows: Rows, dtype: torch.dtype) -> Rounded:
    """Norms of rows (R, D) and of their rounding's residuals."""
    lost = np.zeros(len(rows))
    if dtype != torch.float32:
        for start, block in blocks(rows):
            exact = torch.from_numpy(np.array(block))
            residual = (exact - exact.to(dtype).float()).numpy()  # exact: both parts have float32's exponents
            lost[start : start + len(block)] = norms(residual)
    return Rounded(norms(rows), lost)


class Best:
    """The best lower bounds of every query so far, and the pairs that reached its line when they were met."""

    def __init__(self, queries: int, k: int, margin: float) -> None:
        self.k, self.margin = k, margin
        self._best = torch.full((queries, k), -torch.inf)
        self._counts = np.zeros(queries, np.int64)
        self._found: list[tuple[Int64, Int64, Float32]] = []

    def add(self, lower: torch.Tensor, upper: torch.Tensor, first_query: int, first_item: int) -> None:
        """Bounds (q, n) of some queries and some items."""
        own = slice(first_query, first_query + len(lower))
        near = lower.topk(min(self.k, lower.shape[1]), dim=1).values
        self._best[own] = torch.cat([self._best[own], near], 1).topk(self.k, dim=1).values
        hits = np.flatnonzero((upper >= self._lines(own)[:, None]).contiguous().numpy())
        query, item = np.divmod(hits, lower.shape[1])
        self._found.append((query + first_query, item + first_item, upper.numpy()[query, item]))
        self._counts[own] += np.bincount(query, minlength=len(lower))

    def _lines(self, queries: slice) -> torch.Tensor:
        """Lines of some queries, of shape (q,); infinite for those that too many pairs have reached."""
        lines = self._best[queries, -1] - self.margin
        is_over = torch.from_numpy(self._counts[queries] > MOST_CANDIDATES + 4 * self.k)
        return lines.masked_fill(is_over, torch.inf)

    def candidates(self) -> Candidates:
        """What still reaches the lines when all items were met."""
        whole = slice(0, len(self._counts))
        none = np.empty(0, np.int64)
        query, item = (np.concatenate([none, *(found[at] for found in self._found)]) for at in (0, 1))
        upper = np.concatenate([np.empty(0, np.float32), *(found[2] for found in self._found)])
        keep = np.flatnonzero(upper >= self._lines(whole).numpy()[query])
        keep = keep[np.argsort(query[keep], kind="stable")]
        return Candidates(query[keep], item[keep], self._counts <= MOST_CANDIDATES + 4 * self.k)


class Asked(NamedTuple):
    """A block of texts of one part: rounded (T, D), and their norms and residuals' norms."""

    rows: torch.Tensor
    sizes: Float64
    lost: Float64


def scan(
    images: FactoredVectors,
    known: Sequence[Rounded],
    texts: Float32,
    depths: Depths,
    dtype: torch.dtype,
    reach: float,
) -> tuple[Candidates, Candidates]:
    """Candidates of every text among the images, and of every image among the texts.

    Args:
        images: N images.
        known: of every part's rows, for this dtype.
        texts: (T, E).
        depths: results wanted.
        dtype: of the products, bfloat16 or float32.
        reach: no score is larger.
    """
    margin = rounding_margin(reach)
    backward = Best(len(images) if depths.images else 0, max(1, depths.images), margin)
    forward = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        asked = [asked_texts(part[:, columns], dtype) for columns in images.columns]
        best = Best(len(part) if depths.texts else 0, max(1, depths.texts), margin)
        step = _images_at_once(images, len(part))
        for first in range(0, len(images), step):
            rows = slice(first, min(len(images), first + step))
            lower, upper = bounds(images, known, rows, asked, dtype)
            if depths.texts:
                best.add(lower, upper, 0, first)
            if depths.images:
                backward.add(lower.T.contiguous(), upper.T.contiguous(), first, start)
        if depths.texts:
            found = best.candidates()
            forward.append(found._replace(queries=found.queries + start))
    return _joined(forward), backward.candidates()


def _joined(parts: Sequence[Candidates]) -> Candidates:
    if not parts:
        return nothing_sure(0)
    return Candidates(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _images_at_once(images: FactoredVectors, texts: int) -> int:
    views = max(part.views for part in images.parts)
    values = max(part.views * part.rows.shape[1] for part in images.parts)
    return int(max(1, min(PRODUCTS // (views * max(1, texts)), VALUES // max(1, values))))


def asked_texts(texts: Float32, dtype: torch.dtype) -> Asked:
    """Texts (T, D), the columns of one part, as they are multiplied."""
    known = rounded(texts, dtype)
    return Asked(torch.from_numpy(np.array(texts, order="C")).to(dtype), known.sizes, known.lost)


def bounds(
    images: FactoredVectors, known: Sequence[Rounded], rows: slice, asked: Sequence[Asked], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper bounds (T, n) float32 of the true scores of texts and some images."""
    total = torch.zeros((len(asked[0].rows), rows.stop - rows.start))
    sizes, room = torch.zeros_like(total), np.zeros(len(total))
    for part, of_rows, text in zip(images.parts, known, asked, strict=True):
        own = slice(rows.start * part.views, rows.stop * part.views)
        block = torch.from_numpy(np.array(decode(part.rows[own]), order="C")).to(dtype)
        # views in front, so that the largest is found in long rows
        block = block.view(-1, part.views, block.shape[1]).transpose(0, 1).reshape(len(block), -1)
        best = _largest(text.rows @ block.T, part.views).float()
        total += best
        sizes += best.abs()
        room += _room(text, float(of_rows.sizes[own].max()), float(of_rows.lost[own].max()), block.shape[1])
    sizes *= STORED[dtype]
    sizes += torch.from_numpy(room * (1 + 1e-5)).float()[:, None]
    return total - sizes, total + sizes


def _largest(products: torch.Tensor, views: int) -> torch.Tensor:
    """(T, V n) to (T, n)."""
    count = products.shape[1] // views
    best = products[:, :count]
    for view in range(1, views):
        best = torch.maximum(best, products[:, view * count : (view + 1) * count])
    return best


def _room(text: Asked, largest: float, lost: float, width: int) -> Float64:
    """How far a product may be off before it is stored (T,): rounding of both sides, the sum, and underflow."""
    sizes, kept = text.sizes + text.lost, largest + lost
    found: Float64 = text.lost * largest + sizes * lost + 4 * (width + 4) * 2.0**-24 * sizes * kept
    return found + 2 * (width + 2 + math.sqrt(width) * (sizes + kept)) * LOST_BELOW
