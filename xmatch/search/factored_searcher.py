"""Exact search among images whose score is a sum of maxima, in both directions.

The score of an image and a text is `factored.py`'s, computed exactly and rounded once to float32; equal scores are
ordered by the lowest row. This is the order in which a search over whole vectors in groups would find them.

Shapes: N images, T texts, E width of a text, k results.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xmatch.errors import InputError
from xmatch.search.exact import (
    DENSE_SCORES,
    LARGEST_FLOAT,
    LARGEST_SCORE,
    SearchCounts,
    SearchResult,
    begin_search,
)
from xmatch.search.factored import FactoredVectors
from xmatch.search.factored_scan import Candidates, Depths, Rounded, nothing_sure, rounded, rounding_margin, scan
from xmatch.search.factored_scores import Lengths, Near, double_scores, pair_scores, still_near
from xmatch.search.scores import Float32, Float64, Int64, decode, norms
from xmatch.search.torch_backend import exact_products, has_fast_bf16

TEXT_COLUMNS = 1 << 12
"""Texts that are scored in double precision at a time."""


class BothWays(NamedTuple):
    """The best images of every text (T, k), and the best texts of every image (N, k)."""

    texts: SearchResult
    images: SearchResult


class FactoredSearcher:
    """Exact top-k over images in parts.

    Args:
        images: N images; they are read where they lie, in blocks, once now and once for every 4,096 texts.
        threads: CPU threads of a search.
        first_id: id of the first image, for a shard of a larger bank; `merge_results` merges what shards find.
        dtype: of the products; bfloat16 where this processor multiplies it faster, else float32. Answers are the same.

    Attributes:
        counts: what the searches so far took.

    Raises:
        InputError: an image is not finite; names its row.
    """

    def __init__(
        self, images: FactoredVectors, threads: int = 1, *, first_id: int = 0, dtype: torch.dtype | None = None
    ) -> None:
        self.images, self.threads, self.first_id = images, threads, first_id
        self.counts = SearchCounts()
        self._dtype = dtype or (torch.bfloat16 if has_fast_bf16() else torch.float32)
        self._known: list[Rounded] = [rounded(part.rows, self._dtype) for part in images.parts]
        for part, known in zip(images.parts, self._known, strict=True):
            broken = np.flatnonzero(~np.isfinite(known.sizes))
            if len(broken):
                image, view = divmod(int(broken[0]), part.views)
                raise InputError(
                    f"view {view} of image {image} holds NaN or infinity, but exact search needs finite vectors. "
                    "Drop this image or embed it again."
                )

    @property
    def key_count(self) -> int:
        """Images that are searched."""
        return len(self.images)

    def search(self, texts: npt.NDArray[np.floating], k: int) -> SearchResult:
        """The k best images of every text.

        Args:
            texts: (T, E) float32, float16 or bfloat16, finite.
            k: results for each, at least 1.

        Returns:
            Scores (T, k) and ids of images (T, k); where k exceeds N, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the texts are no matrix of this width.
            InputError: a text is not finite.
        """
        rows, result = begin_search(texts, k, self.images.width)
        self._fill(decode(rows), result, None)
        return result

    def search_texts(self, texts: npt.NDArray[np.floating], k: int) -> SearchResult:
        """The k best texts of every image: scores (N, k) and rows of texts (N, k); else as `search`."""
        rows, _ = begin_search(texts, k, self.images.width)
        result = _nothing(len(self.images), k)
        self._fill(decode(rows), None, result)
        return result

    def search_both(self, texts: npt.NDArray[np.floating], k: int) -> BothWays:
        """Both directions, (T, k) and (N, k), from one pass over all pairs; else as `search`."""
        rows, result = begin_search(texts, k, self.images.width)
        both = BothWays(result, _nothing(len(self.images), k))
        self._fill(decode(rows), both.texts, both.images)
        return both

    def _fill(self, texts: Float32, of_texts: SearchResult | None, of_images: SearchResult | None) -> None:
        if not (len(texts) and len(self.images)):
            return
        of_columns = tuple(norms(texts[:, columns]) for columns in self.images.columns)
        lengths = Lengths(tuple(known.sizes for known in self._known), of_columns)
        depths = Depths(
            0 if of_texts is None else min(len(self.images), of_texts.ids.shape[1]),
            0 if of_images is None else min(len(texts), of_images.ids.shape[1]),
        )
        reach = sum(float(own.max()) * float(other.max()) for own, other in zip(*lengths, strict=True))
        found = self._candidates(texts, depths, lengths, reach)
        sides = ((of_texts, found[0], False), (of_images, found[1], True))
        for result, candidates, is_image in sides:
            if result is None:
                continue
            self._count(SearchCounts(queries=len(result.ids), candidates=len(candidates.queries)))
            pairs = self._nearest(
                texts, lengths, candidates, is_image, Near(result.ids.shape[1], rounding_margin(reach))
            )
            self._settle(texts, lengths, pairs, is_image, result)
            for query in np.flatnonzero(~candidates.is_sure).tolist():
                items = self._contenders(texts, lengths, query, is_image, result.ids.shape[1])
                self._settle(texts, lengths, (np.full(len(items), query), items), is_image, result)
                self._count(SearchCounts(fallbacks=1))

    def _nearest(
        self, texts: Float32, lengths: Lengths, found: Candidates, is_image: bool, near: Near
    ) -> tuple[Int64, Int64]:
        """Queries and items (P,) of the candidates that float32 products leave."""
        pairs = (found.queries, found.items) if is_image else (found.items, found.queries)
        kept = still_near(self.images, texts, lengths, pairs, found.queries, near)
        return found.queries[kept], found.items[kept]

    def _count(self, counts: SearchCounts) -> None:
        self.counts = self.counts.plus(counts)

    def _candidates(
        self, texts: Float32, depths: Depths, lengths: Lengths, reach: float
    ) -> tuple[Candidates, Candidates]:
        """Of the scan; where float32 sums, or rounding to bfloat16, might overflow, none for sure."""
        if max(reach, *(float(one.max()) for side in lengths for one in side)) >= LARGEST_SCORE:
            return nothing_sure(len(texts)), nothing_sure(len(self.images))
        with exact_products(self.threads), torch.inference_mode():
            return scan(self.images, self._known, texts, depths, self._dtype, reach)

    def _settle(
        self, texts: Float32, lengths: Lengths, pairs: tuple[Int64, Int64], is_image: bool, result: SearchResult
    ) -> None:
        """Score pairs (P,) of queries and items exactly, and put each of these queries' best into the result."""
        query, item = pairs
        exact = pair_scores(self.images, texts, lengths, (query, item) if is_image else (item, query))
        self._count(SearchCounts(rescored=len(query), exact_sums=exact.exact_sums))
        order = np.lexsort((item, -exact.scores, query))
        query, item, scores = query[order], item[order], exact.scores[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        keep = place < result.ids.shape[1]
        result.scores[query[keep], place[keep]] = scores[keep]
        result.ids[query[keep], place[keep]] = item[keep] + (0 if is_image else self.first_id)

    def _contenders(self, texts: Float32, lengths: Lengths, query: int, is_image: bool, k: int) -> Int64:
        """Items (C,) of one query that may be among its best, by every score in double precision."""
        sums, errors = (self._of_image if is_image else self._of_text)(texts, lengths, query)
        kth = np.partition(sums, -min(k, len(sums)))[-min(k, len(sums))]
        line = -np.inf  # beyond the largest float all scores are one infinity
        if kth > -LARGEST_FLOAT:
            top = float(np.abs(sums).max() + errors.max())
            line = min(kth, LARGEST_FLOAT) - 2 * float(errors.max()) - 2.0**-23 * top - 2.0**-149
        return np.flatnonzero(sums >= line)

    def _of_image(self, texts: Float32, lengths: Lengths, image: int) -> tuple[Float64, Float64]:
        starts = range(0, len(texts), TEXT_COLUMNS)
        parts = [
            double_scores(self.images, slice(image, image + 1), texts, lengths, slice(start, start + TEXT_COLUMNS))
            for start in starts
        ]
        return np.concatenate([p.sums[0] for p in parts]), np.concatenate([p.errors[0] for p in parts])

    def _of_text(self, texts: Float32, lengths: Lengths, text: int) -> tuple[Float64, Float64]:
        values = sum(part.views * part.rows.shape[1] for part in self.images.parts)
        step = max(1, DENSE_SCORES // max(1, values))
        parts = [
            double_scores(
                self.images, slice(start, min(len(self.images), start + step)), texts, lengths, slice(text, text + 1)
            )
            for start in range(0, len(self.images), step)
        ]
        return np.concatenate([p.sums[:, 0] for p in parts]), np.concatenate([p.errors[:, 0] for p in parts])


def _nothing(count: int, k: int) -> SearchResult:
    return SearchResult(np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64))
