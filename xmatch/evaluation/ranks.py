"""Ranks by counting, block by block: no sorting, no full score matrix.

The rank of a true match is one more than the number of candidates with a greater score plus the number of candidates
with an equal score and a lower row: the order in which the search would list them. A query with several true matches
has the rank of its best one.

Both directions are counted in one pass over tiles of the score matrix. The scores of the true matches must be known
before, so the tiles that hold them are computed first and kept, up to `KEPT_BYTES`; beyond that they are computed
twice, by the same product, so that the bits agree.
Shapes: N images, M captions, D the shared space; Q queries, K candidates, P query-candidate pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.evaluation.similarities import Block, EmbeddingSimilarities, PartSimilarities, Similarities

TILE_ROWS = 250
"""Rows of a tile; at most 255, so that a column's count fits a byte. A tile of float32 stays in a core's cache."""
TILE_COLUMNS = 1280
KEPT_BYTES = 256 << 20
"""Tiles with true matches that are kept between the two looks at them."""
MISSED = int(np.iinfo(np.int64).max)
"""Rank of a query that has no true match: it is found at no depth."""

Ranks = npt.NDArray[np.int64]
Kept = dict[tuple[int, int], Block]


@dataclass(frozen=True)
class Positives:
    """True matches of each query, as compressed rows.

    Attributes:
        offsets: (Q + 1,) int64; query q has `candidates[offsets[q] : offsets[q + 1]]`.
        candidates: (P,) int64 rows of candidates, ascending within a query, none twice.
    """

    offsets: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]

    @classmethod
    def from_pairs(
        cls, queries: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], query_count: int
    ) -> Positives:
        """From query rows and candidate rows, of one shape (P,), in any order; repeated pairs count once."""
        pairs = np.unique(np.stack([queries, candidates]).astype(np.int64), axis=1)
        counts = np.bincount(pairs[0], minlength=query_count)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), pairs[1])

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Positives:
        """From one list of candidate rows per query."""
        queries = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
        return cls.from_pairs(queries, np.array([c for one in lists for c in one], np.int64), len(lists))

    @classmethod
    def none(cls, query_count: int) -> Positives:
        """No true match for any query: that direction is not counted."""
        return cls(np.zeros(query_count + 1, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """True matches of each query, of shape (Q,)."""
        return np.diff(self.offsets)

    @property
    def queries(self) -> npt.NDArray[np.int64]:
        """Query of each pair, of shape (P,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def part(self, start: int, stop: int) -> Positives:
        """Those of the queries start … stop - 1."""
        offsets = self.offsets[start : stop + 1]
        return Positives(offsets - offsets[0], self.candidates[offsets[0] : offsets[-1]])


class Counted(NamedTuple):
    """Ranks of one direction.

    Attributes:
        ranks: (Q,) 1-based ranks of each query's best true match; `MISSED` where it has none.
        best: (Q,) row of that match, -1 where there is none.
        ties: queries whose match has the very score of a candidate that is no match: there the order is a convention.
    """

    ranks: Ranks
    best: npt.NDArray[np.int64]
    ties: int


def count_ranks(source: Similarities, row_positives: Positives, column_positives: Positives) -> tuple[Counted, Counted]:
    """Ranks of the best true match, rows against columns and columns against rows, in one pass.

    Args:
        source: scores of (rows, columns).
        row_positives: true columns of each row; `Positives.none(rows)` skips the direction.
        column_positives: true rows of each column; `Positives.none(columns)` skips the direction.

    Returns:
        Counts of the row queries, and of the column queries.
    """
    rows, columns = source.shape
    _check_positives(row_positives, rows, columns, "row")
    _check_positives(column_positives, columns, rows, "column")
    if len(column_positives.candidates) or rows <= TILE_ROWS:
        return _count_both(source, row_positives, column_positives)
    strips = []
    for start in range(0, rows, TILE_ROWS):  # a strip's tiles are all kept: nothing is computed twice
        stop = min(start + TILE_ROWS, rows)
        strip = PartSimilarities(source, slice(start, stop), slice(0, columns))
        strips.append(_count_both(strip, row_positives.part(start, stop), column_positives)[0])
    by_row = Counted(
        np.concatenate([s.ranks for s in strips]), np.concatenate([s.best for s in strips]), sum(s.ties for s in strips)
    )
    return by_row, Counted(np.full(columns, MISSED), np.full(columns, -1), 0)


def caption_ranks(source: Similarities, caption_image: npt.NDArray[np.int64]) -> tuple[Counted, Counted]:
    """Image-to-text and text-to-image ranks where each caption belongs to one image.

    Args:
        source: scores (N, M) of images and captions.
        caption_image: (M,) row of each caption's image; every image has at least one caption.

    Returns:
        Counts of the N images (the best of an image's own captions), and of the M captions.
    """
    _check_captions(source.shape, caption_image)
    captions, images = np.arange(len(caption_image)), source.shape[0]
    return count_ranks(
        source,
        Positives.from_pairs(caption_image, captions, images),
        Positives.from_pairs(captions, caption_image, len(captions)),
    )


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
    return caption_ranks(EmbeddingSimilarities(images, texts), caption_image)[1].ranks


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
    return caption_ranks(EmbeddingSimilarities(images, texts), caption_image)[0].ranks


def ranks_of(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> Ranks:
    """1-based ranks of one target per row of a (Q, K) score matrix; equal scores count by row."""
    rows = np.arange(len(scores))
    own = scores[rows, targets][:, None]
    before = np.arange(scores.shape[1])[None, :] < targets[:, None]
    counted: Ranks = 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)
    return counted


def recall_at_k(ranks: Ranks, k: int) -> float:
    """Per cent of queries whose rank is at most k."""
    return float(100.0 * np.mean(ranks <= k))


def scores_at(
    source: Similarities, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], keep: Kept | None = None
) -> npt.NDArray[np.float64]:
    """Scores of pairs of rows and columns, each of shape (P,), tile by tile; `keep` gets tiles while it has room."""
    scores = np.empty(len(rows))
    if not len(rows):
        return scores
    across = -(-source.shape[1] // TILE_COLUMNS)
    tile_of = rows // TILE_ROWS * across + columns // TILE_COLUMNS
    order = np.argsort(tile_of, kind="stable")
    tiles, starts = np.unique(tile_of[order], return_index=True)
    kept_bytes = 0
    for tile, pairs in zip(tiles, np.split(order, starts[1:])):
        at = (int(tile) // across * TILE_ROWS, int(tile) % across * TILE_COLUMNS)
        block = _tile(source, *at)
        scores[pairs] = block[rows[pairs] - at[0], columns[pairs] - at[1]]
        kept_bytes += block.nbytes
        if keep is not None and kept_bytes <= KEPT_BYTES:
            keep[at] = block
    return scores


def _count_both(source: Similarities, by_row: Positives, by_column: Positives) -> tuple[Counted, Counted]:
    kept: Kept = {}
    row_of = np.concatenate([by_row.queries, by_column.candidates])
    column_of = np.concatenate([by_row.candidates, by_column.queries])
    scores = scores_at(source, row_of, column_of, kept)
    row_tally = _Tally(by_row, scores[: len(by_row.candidates)])
    column_tally = _Tally(by_column, scores[len(by_row.candidates) :])
    for (top, left), block in _tiles(source, kept):
        row_tally.add(block, top, left)
        column_tally.add(block.T, left, top)
    return row_tally.counted(), column_tally.counted()


class _Tally:
    """Counts of one direction, filled tile by tile."""

    def __init__(self, positives: Positives, scores: npt.NDArray[np.float64]) -> None:
        queries = positives.queries
        order = np.lexsort((positives.candidates, -scores, queries))  # the best first, of equal ones the lowest row
        has, first = np.unique(queries[order], return_index=True)
        self.best = np.full(len(positives), -1)
        self.target = np.full(len(positives), np.inf)  # nothing is greater than or equal to it
        self.best[has] = positives.candidates[order[first]]
        self.target[has] = scores[order[first]]
        self.wanted = bool(len(has))
        own_equal = scores == self.target[queries]
        self.own = np.bincount(queries[own_equal], minlength=len(positives))
        self.greater = np.zeros(len(positives), np.int64)
        self.equal = np.zeros(len(positives), np.int64)
        self.before = np.zeros(len(positives), np.int64)

    def add(self, block: Block, first_query: int, first_candidate: int) -> None:
        """Count a (queries, candidates) block."""
        if not self.wanted:
            return
        part = slice(first_query, first_query + len(block))
        target = self.target[part].astype(block.dtype)[:, None]
        self.greater[part] += _count_true(block > target)
        equal = block == target
        if np.count_nonzero(equal):
            query, candidate = np.nonzero(equal)
            before = candidate + first_candidate < self.best[part][query]
            self.equal[part] += np.bincount(query, minlength=len(block))
            self.before[part] += np.bincount(query[before], minlength=len(block))

    def counted(self) -> Counted:
        """Ranks, once every tile was added."""
        ranks = np.where(self.best < 0, MISSED, 1 + self.greater + self.before)
        return Counted(ranks, self.best, int(np.count_nonzero(self.equal > self.own)))


def _count_true(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.integer]:
    """True entries of each row of (Q, K); byte-wise where rows are strided, which then have at most `TILE_ROWS`."""
    if mask.flags.c_contiguous:
        return np.asarray(np.count_nonzero(mask, axis=1))
    counted: npt.NDArray[np.integer] = np.add.reduce(mask.view(np.uint8), axis=1, dtype=np.uint8)
    return counted


def _tiles(source: Similarities, kept: Kept) -> Iterator[tuple[tuple[int, int], Block]]:
    for top in range(0, source.shape[0], TILE_ROWS):
        for left in range(0, source.shape[1], TILE_COLUMNS):
            found = kept.pop((top, left), None)
            yield (top, left), _tile(source, top, left) if found is None else found


def _tile(source: Similarities, top: int, left: int) -> Block:
    rows, columns = source.shape
    part = slice(top, min(top + TILE_ROWS, rows)), slice(left, min(left + TILE_COLUMNS, columns))
    block: Block = np.ascontiguousarray(source.block(*part))
    return block


def _check_positives(positives: Positives, queries: int, candidates: int, kind: str) -> None:
    if len(positives) != queries:
        raise InputError(f"positives of {len(positives)} {kind} queries were given; the scores have {queries} {kind}s.")
    outside = np.flatnonzero((positives.candidates < 0) | (positives.candidates >= candidates))
    if len(outside):
        query, candidate = positives.queries[outside[0]], positives.candidates[outside[0]]
        raise InputError(
            f"{kind} query {query} has the positive {candidate}; expected 0 to {candidates - 1}. "
            "Leave out positives that are not in the gallery."
        )


def _check_captions(shape: tuple[int, int], caption_image: npt.NDArray[np.int64]) -> None:
    """Check that `caption_image`, of shape (M,), gives every caption an image, and every image a caption."""
    images, captions = shape
    if len(caption_image) != captions or (captions and not 0 <= caption_image.min() <= caption_image.max() < images):
        raise InputError(
            f"caption_image must give each of {captions} captions the row of one of {images} images; got "
            f"{len(caption_image)} rows. Use the captions and images that were embedded."
        )
    without = np.setdiff1d(np.arange(images), caption_image)
    if len(without):
        raise InputError(
            f"image {without[0]} has no caption ({len(without)} of {images} have none). Leave such images out."
        )
