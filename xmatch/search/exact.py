"""From candidates to the exact answer: how far to look, what to do when that does not settle it, and how to merge.

Shapes: Q queries, N keys, D width, C candidates, K results, P pairs of a query and a candidate.
The proofs are in docs/search.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.search.scores import Float32, Float64, Int64, Rows, blocks, is_float, norms, pair_scores, sum_error

Candidates = Callable[[Float32, int], tuple[Float32, Int64]]

EXTRA = 2
"""Candidates asked for beyond k at first; each further round asks for four times as many."""
MAX_DEPTH = 512
"""Candidates beyond which a query is scored against every key instead."""
QUERY_BLOCK = 1024
DENSE_SCORES = 1 << 23
"""Double-precision scores held at a time where every key is scored: 64 MiB, or those of one query."""
LARGEST_SCORE = 2.0**126
"""Above, float32 sums may overflow, and no bound of theirs holds."""
LARGEST_FLOAT = float(np.finfo(np.float32).max)
LOST_BELOW = 2.0**-125
"""What one float32 operation may lose where it underflows, even when subnormals are flushed to zero."""


class SearchResult(NamedTuple):
    """Scores (Q, k) float32 and ids (Q, k) int64, best first."""

    scores: Float32
    ids: Int64


class SearchCounts(NamedTuple):
    """What searches took so far.

    Attributes:
        queries: queries answered.
        candidates: pairs that a scan's bound could not exclude.
        rescored: of these, pairs scored in double precision.
        exact_sums: pairs whose double-precision sum did not settle the rounding to float32.
        fallbacks: queries scored against every key.
    """

    queries: int = 0
    candidates: int = 0
    rescored: int = 0
    exact_sums: int = 0
    fallbacks: int = 0

    def plus(self, other: SearchCounts) -> SearchCounts:
        """Both together."""
        return SearchCounts(*(a + b for a, b in zip(self, other, strict=True)))


class Found(NamedTuple):
    """Exact scores (Q, K) and rows (Q, K), and what they took."""

    scores: Float32
    rows: Int64
    counts: SearchCounts


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys (N, D), as they are stored, and upper bounds of their L2 norms (N,)."""

    rows: Rows
    norms: Float64

    @cached_property
    def largest_norm(self) -> float:
        """The largest of the norms."""
        return float(self.norms.max()) if len(self.norms) else 0.0


def check_rows(rows: Rows, name: str, width: int | None) -> Rows:
    """Rows as an aligned, contiguous matrix of the type they have; such a matrix is not copied, nor read at once.

    Raises:
        ValueError: it is no matrix, of another width, or neither float32, float16 nor bfloat16.
        InputError: a row holds NaN or infinity; names the first.
    """
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"expected {name} rows as a matrix (n, {width or 'D'}), got shape {rows.shape}")
    if not is_float(rows.dtype):
        raise ValueError(f"expected {name} rows as float32, float16 or bfloat16, got {rows.dtype}")
    rows = np.require(rows, requirements=["C", "A"])
    broken = [s + np.flatnonzero(~np.isfinite(b).all(1)) for s, b in blocks(rows) if not np.isfinite(b).all()]
    if broken:
        count = sum(map(len, broken))
        raise InputError(
            f"{name} {broken[0][0]} holds NaN or infinity ({count} of {len(rows)} do), but exact search needs finite "
            "vectors. Drop these rows or make them again."
        )
    return rows


def begin_search(queries: Rows, k: int, width: int) -> tuple[Rows, SearchResult]:
    """What every search starts with.

    Args:
        queries: (Q, D) float32, float16 or bfloat16, finite.
        k: results per query, at least 1.
        width: D.

    Returns:
        The queries, checked, and their result (Q, k) as if nothing was found: -inf with id -1.

    Raises:
        ValueError: k is below 1, or the queries are no matrix of this width.
        InputError: a query is not finite (names the row).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = check_rows(queries, "query", width=width)
    return rows, SearchResult(np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64))


def margins(query_norms: Float64, largest_key: float) -> Float64:
    """Scores that differ by more than this are still different, and in the same order, after rounding to float32."""
    return 2.0**-23 * query_norms * largest_key + 2.0**-149


def certify(candidates: Candidates, queries: Float32, keys: Keys, k: int) -> Found:
    """The exact top k from a scan that gives the best float32 scores, to any depth.

    Args:
        candidates: the scan: (queries, depth) to scores and rows (Q, depth), best first.
        queries: (Q, D).
        keys: N >= k of them.
        k: results per query.
    """
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    counts = SearchCounts(queries=len(queries))
    width, largest, query_norms = queries.shape[1], keys.largest_norm, norms(queries)
    bounds = 1.05 * (width + 2) * 2.0**-24 * query_norms * largest
    bounds += (width + 2 + math.sqrt(width) * (query_norms + largest)) * LOST_BELOW
    room = 2 * bounds + margins(query_norms, largest)
    open_rows = np.flatnonzero(query_norms * largest < LARGEST_SCORE)
    beyond = np.flatnonzero(query_norms * largest >= LARGEST_SCORE)
    depth = min(len(keys.rows), k + EXTRA)
    while len(open_rows) and depth <= max(MAX_DEPTH, k + EXTRA):
        left = []
        for start in range(0, len(open_rows), QUERY_BLOCK):
            asked = open_rows[start : start + QUERY_BLOCK]
            near, found = candidates(queries[asked], depth)
            lines = near[:, k - 1] - room[asked]
            enough = (near[:, -1] < lines) | (depth == len(keys.rows))
            sure = asked[enough]
            pairs = _pairs_in_reach(near[enough] >= lines[enough, None], found[enough])
            part = best_pairs(queries[sure], keys, pairs, k)
            scores[sure], rows[sure], counts = part.scores, part.rows, counts.plus(part.counts)
            left.append(asked[~enough])
        open_rows = np.concatenate(left)
        if depth == len(keys.rows):
            break
        depth = min(len(keys.rows), 4 * depth)
    rest = np.concatenate([open_rows, beyond])
    every = score_every_key(queries[rest], keys, k)
    scores[rest], rows[rest] = every.scores, every.rows
    return Found(scores, rows, counts.plus(every.counts))


def _pairs_in_reach(in_reach: npt.NDArray[np.bool_], rows: Int64) -> tuple[Int64, Int64]:
    """Queries and rows, of shape (P,), of the candidates (Q, C) in reach; rows ascend within a query."""
    ordered = np.sort(np.where(in_reach, rows, np.iinfo(np.int64).max), axis=1)
    kept = np.arange(rows.shape[1]) < in_reach.sum(1)[:, None]
    return np.nonzero(kept)[0], ordered[kept]


def best_pairs(queries: Float32, keys: Keys, pairs: tuple[Int64, Int64], k: int) -> Found:
    """The best k of each query's candidates by score, ties to the lowest row.

    Args:
        queries: (Q, D), at most 65,536.
        keys: the keys.
        pairs: (P,) rows of queries and (P,) rows of keys, in ascending order of both; at least k for each query.
        k: results per query.
    """
    query_rows, key_rows = pairs
    exact = pair_scores(queries, keys.rows, pairs, keys.norms)
    order = best_of_each(query_rows, exact.scores)
    starts = np.searchsorted(query_rows, np.arange(len(queries)))
    chosen = order[starts[:, None] + np.arange(k)]
    counts = SearchCounts(0, len(query_rows), len(query_rows), exact.exact_sums)
    return Found(exact.scores[chosen], key_rows[chosen], counts)


def best_of_each(query_rows: Int64, scores: Float32) -> Int64:
    """The order of pairs (P,), P below 2^32, by query, and of each from the best down; equal scores keep their order.

    Faster than a stable argsort: score and place become one whole number each, the score's bits so turned that larger
    scores give smaller numbers, and numbers are sorted with vector instructions; queries, below 2^16, by radix.

    Args:
        query_rows: (P,), each below 65,536.
        scores: (P,), none of them -0.
    """
    bits = scores.view(np.uint32)
    falling = np.where(scores.view(np.int32) < 0, bits, ~(bits | np.uint32(1 << 31)))
    numbers = (falling.astype(np.uint64) << np.uint64(32)) | np.arange(len(scores), dtype=np.uint64)
    numbers.sort()
    order = (numbers & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return order[np.argsort(query_rows[order].astype(np.uint16), kind="stable")]


def score_every_key(queries: Float32, keys: Keys, k: int) -> Found:
    """The exact top k without a scan: every score in double precision, the contenders rounded as they must be."""
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    counts = SearchCounts(fallbacks=len(queries))
    step = max(1, DENSE_SCORES // len(keys.rows))
    for start in range(0, len(queries), step):
        asked = queries[start : start + step]
        wide = asked.astype(np.float64)
        sums = np.concatenate([wide @ block.astype(np.float64).T for _, block in blocks(keys.rows)], axis=1)
        reach = norms(asked) * keys.largest_norm
        room = 2 * sum_error(asked.shape[1]) * reach + margins(norms(asked), keys.largest_norm)
        kth = np.partition(sums, -k, axis=1)[:, -k]
        # beyond the largest float all scores are one infinity
        lines = np.where(kth > -LARGEST_FLOAT, np.minimum(kth, LARGEST_FLOAT) - room, -np.inf)
        query_rows, key_rows = np.nonzero(sums >= lines[:, None])
        part = best_pairs(asked, keys, (query_rows, key_rows), k)
        scores[start : start + step], rows[start : start + step] = part.scores, part.rows
        counts = counts.plus(part.counts._replace(candidates=0))
    return Found(scores, rows, counts)


def merge_results(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The answer over all keys from the answers over parts of them (shards, or blocks that arrive one by one).

    Args:
        parts: one result for each part, all for the same queries, each at least as deep as k or as its part has keys.
            An id that several parts found, as a group may be, counts once, with its best score.
        k: results per query.
    """
    scores = np.concatenate([part.scores for part in parts], 1)
    ids = np.concatenate([part.ids for part in parts], 1)
    missing = np.isneginf(scores) & (ids == -1)
    by_id = np.lexsort((-scores, ids), axis=1)  # of one id the best score comes first, and the others count as missing
    sorted_ids, again = np.take_along_axis(ids, by_id, 1), np.zeros(ids.shape, bool)
    again[:, 1:] = sorted_ids[:, 1:] == sorted_ids[:, :-1]
    np.put_along_axis(missing, by_id, np.take_along_axis(missing, by_id, 1) | again, 1)
    order = np.lexsort((ids, -scores, missing), axis=1)[:, :k]
    gone = np.take_along_axis(missing, order, 1)
    best = SearchResult(np.full((len(ids), k), -np.inf, np.float32), np.full((len(ids), k), -1, np.int64))
    found = (
        np.where(gone, -np.inf, np.take_along_axis(scores, order, 1)),
        np.where(gone, -1, np.take_along_axis(ids, order, 1)),
    )
    best.scores[:, : order.shape[1]], best.ids[:, : order.shape[1]] = found
    return best
