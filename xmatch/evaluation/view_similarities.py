"""Scores of images that have several vectors each: of each part the best view, and the sum over the parts.

What all views of an image share lies in a part of one view, so that it is multiplied once and not for every view
(`xmatch/search/factored.py`). Scores of images with images are the best over all pairs of views, part by part.

Shapes: N images, M captions, V views, E width, D of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.evaluation.similarities import Block, EmbeddingSimilarities, Similarities
from xmatch.search.factored import FactoredVectors, Part, factor, shared_from
from xmatch.search.scores import Float32, Int64, Rows, decode

Images = npt.NDArray[np.floating] | FactoredVectors
"""One vector (N, D) an image, or several in parts."""
GATHERED = 1 << 26
"""Bytes of whole vectors that are gathered at a time."""


@dataclass(frozen=True)
class ViewSimilarities:
    """Scores of images in parts and captions.

    Attributes:
        images: N images.
        texts: (M, E) embeddings, E being the width of the parts together.
    """

    images: FactoredVectors
    texts: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.texts.ndim != 2 or self.texts.shape[1] != self.images.width:
            raise InputError(
                f"images are {self.images.width} wide and texts have the shape {self.texts.shape}; both must be of "
                "one width. Embed both with the same model."
            )
        object.__setattr__(self, "texts", np.asarray(self.texts, np.float32))
        require_finite(Part(self.texts, 1), "text")
        for part in self.images.parts:
            require_finite(part, "image")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.images), len(self.texts)

    def block(self, rows: slice, columns: slice) -> Block:
        """A matrix product for every view."""
        texts = self.texts[columns]
        found = np.zeros((rows.stop - rows.start, len(texts)), np.float32)
        for part, own in zip(self.images.parts, self.images.columns, strict=True):
            found += _best_view(part, rows, texts[:, own])
        return found


@dataclass(frozen=True)
class WithinViews:
    """Scores of images in parts with one another: of each part the best pair of views.

    Attributes:
        images: N images.
    """

    images: FactoredVectors

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N)."""
        return len(self.images), len(self.images)

    def block(self, rows: slice, columns: slice) -> Block:
        """A matrix product for every pair of views."""
        found = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        for part in self.images.parts:
            best = _best_view(part, rows, _view(part, columns, 0))
            for view in range(1, part.views):
                np.maximum(best, _best_view(part, rows, _view(part, columns, view)), out=best)
            found += best
        return found


def across(images: Images, texts: npt.NDArray[np.floating]) -> EmbeddingSimilarities | ViewSimilarities:
    """Scores (N, M) of images, (N, E) or in parts, and captions (M, E).

    Raises:
        InputError: widths differ, or an embedding is not finite.
    """
    if isinstance(images, FactoredVectors):
        return ViewSimilarities(images, texts)
    return EmbeddingSimilarities(images, texts)


def among_images(images: Images) -> Similarities:
    """Scores of images with one another."""
    return WithinViews(images) if isinstance(images, FactoredVectors) else EmbeddingSimilarities(images, images)


def chosen_views(rows: Rows, chosen: Int64) -> FactoredVectors:
    """Images of several vectors in parts, those columns that all views share taken out.

    Args:
        rows: (R, E) vectors; may be memory-mapped, and stay where they lie if all are chosen in their order.
        chosen: (N, V) rows of each image's views.
    """
    count, views = chosen.shape
    if chosen.size == len(rows) and (chosen.reshape(-1) == np.arange(len(rows))).all():
        return factor(rows, views, shared_from(rows, views))
    step = max(1, GATHERED // max(1, views * rows.shape[1] * rows.itemsize))
    parts = [chosen[start : start + step].reshape(-1) for start in range(0, count, step)]
    dim = max((shared_from(rows[part], views) for part in parts), default=rows.shape[1])
    own = np.empty((count * views, dim), rows.dtype)
    shared = np.empty((count, rows.shape[1] - dim), rows.dtype)
    for number, part in enumerate(parts):
        whole, start = rows[part], number * step
        own[start * views : start * views + len(whole)] = whole[:, :dim]
        shared[start : start + len(whole) // views] = whole[::views, dim:]
    return FactoredVectors((Part(own, views), *([Part(shared, 1)] if shared.shape[1] else [])))


def view_rows(vectors: npt.NDArray[np.floating]) -> FactoredVectors:
    """(N, V, E) vectors in parts, without a copy where they are contiguous."""
    count, views, width = vectors.shape
    return chosen_views(vectors.reshape(count * views, width), np.arange(count * views).reshape(count, views))


def require_finite(part: Part, name: str) -> None:
    """Check that embeddings hold neither NaN nor infinity.

    Raises:
        InputError: some do; names the first.
    """
    step = max(1, GATHERED // max(1, part.rows.shape[1] * part.rows.itemsize))
    for start in range(0, len(part.rows), step):
        broken = np.flatnonzero(~np.isfinite(part.rows[start : start + step]).all(1))
        if len(broken):
            raise InputError(
                f"{name} embedding {(start + int(broken[0])) // part.views} holds NaN or infinity; expected finite "
                "numbers. Embed them again, in float32 if half precision overflowed."
            )


def _view(part: Part, rows: slice, view: int) -> Float32:
    """(n, D) one view of some images."""
    return decode(part.rows[rows.start * part.views + view : rows.stop * part.views : part.views])


def _best_view(part: Part, rows: slice, others: Float32) -> Float32:
    """(n, m) of some images the best of their views with each of (m, D) vectors."""
    best: Float32 = _view(part, rows, 0) @ others.T
    for view in range(1, part.views):
        np.maximum(best, _view(part, rows, view) @ others.T, out=best)
    return best
