"""From candidates to the exact answer: how far to look, what to do when that does not settle it, and how to merge.

Shapes: Q queries, N keys, D width, C candidates, K results, P pairs of a query and a candidate.
The proofs are in docs/search.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.search.scores import Float32, Float64, Int64, norms, pair_scores, sum_error

Candidates = Callable[[Float32, int], tuple[Float32, Int64]]

EXTRA = 8
"""Candidates asked for beyond k at first; each further round asks for four times as many."""
MAX_DEPTH = 512
"""Candidates beyond which a query is scored against every key instead."""
QUERY_BLOCK = 1024
KEY_BLOCK = 1 << 14
"""Keys converted to double precision at a time."""
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


class Keys(NamedTuple):
    """Keys (N, D) and upper bounds of their L2 norms (N,)."""

    rows: Float32
    norms: Float64

    @property
    def largest_norm(self) -> float:
        """The largest of the norms."""
        return float(self.norms.max()) if len(self.norms) else 0.0


def check_rows(rows: npt.NDArray[np.floating], name: str, width: int | None) -> Float32:
    """Rows as an aligned, contiguous float32 matrix.

    Raises:
        ValueError: it is no matrix, of another width, or neither float32 nor float16.
        InputError: a row holds NaN or infinity; names the first.
    """
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"expected {name} rows as a matrix (n, {width or 'D'}), got shape {rows.shape}")
    if rows.dtype not in (np.float32, np.float16):
        raise ValueError(f"expected {name} rows as float32 or float16, got {rows.dtype}")
    rows = np.require(rows, np.float32, ["C", "A"])
    broken = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(broken):
        raise InputError(
            f"{name} {broken[0]} holds NaN or infinity ({len(broken)} of {len(rows)} do), but exact search needs "
            "finite vectors. Drop these rows or make them again."
        )
    return rows


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
    width, largest = queries.shape[1], keys.largest_norm
    query_norms = norms(queries)
    bounds = 1.05 * (width + 2) * 2.0**-24 * query_norms * largest + (width + 2) * LOST_BELOW
    room = 2 * bounds + margins(query_norms, largest)
    open_rows = np.flatnonzero(query_norms * largest < LARGEST_SCORE)
    beyond = np.flatnonzero(query_norms * largest >= LARGEST_SCORE)
    depth = min(len(keys.rows), k + EXTRA)
    while len(open_rows) and depth <= max(MAX_DEPTH, k + EXTRA):
        left = []
        for start in range(0, len(open_rows), QUERY_BLOCK):
            asked = open_rows[start : start + QUERY_BLOCK]
            near, found = candidates(queries[asked], depth)
            enough = (near[:, -1] < near[:, k - 1] - room[asked]) | (depth == len(keys.rows))
            sure = asked[enough]
            pairs = np.repeat(np.arange(len(sure)), depth), found[enough].reshape(-1)
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


def best_pairs(queries: Float32, keys: Keys, pairs: tuple[Int64, Int64], k: int) -> Found:
    """The best k of each query's candidates by score, ties to the lowest row.

    Args:
        queries: (Q, D).
        keys: the keys.
        pairs: (P,) rows of queries, ascending, and (P,) rows of keys; at least k for each query.
        k: results per query.
    """
    query_rows, key_rows = pairs
    exact = pair_scores(queries, keys.rows, pairs, keys.norms)
    order = np.lexsort((key_rows, -exact.scores, query_rows))
    starts = np.searchsorted(query_rows, np.arange(len(queries)))
    chosen = order[starts[:, None] + np.arange(k)[None, :]]
    counts = SearchCounts(0, len(query_rows), len(query_rows), exact.exact_sums)
    return Found(exact.scores[chosen], key_rows[chosen], counts)


def score_every_key(queries: Float32, keys: Keys, k: int) -> Found:
    """The exact top k without a scan: every score in double precision, the contenders rounded as they must be."""
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    counts = SearchCounts(fallbacks=len(queries))
    query_norms = norms(queries)
    for place, query in enumerate(queries.astype(np.float64)):
        parts = [keys.rows[i : i + KEY_BLOCK].astype(np.float64) @ query for i in range(0, len(keys.rows), KEY_BLOCK)]
        sums = np.concatenate(parts)
        reach = float(query_norms[place]) * keys.largest_norm
        room = 2 * sum_error(len(query)) * reach + 2.0**-23 * reach + 2.0**-149
        kth = float(np.partition(sums, -k)[-k])
        line = (
            min(kth, LARGEST_FLOAT) - room if kth > -LARGEST_FLOAT else -np.inf
        )  # beyond, all scores are one infinity
        near = np.flatnonzero(sums >= line)
        part = best_pairs(queries[place : place + 1], keys, (np.zeros(len(near), np.int64), near), k)
        scores[place], rows[place] = part.scores[0], part.rows[0]
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
    best = SearchResult(np.full((len(ids), k), -np.inf, np.float32), np.full((len(ids), k), -1, np.int64))
    order = np.lexsort((ids, -scores, missing), axis=1)
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    present = ~np.take_along_axis(missing, order, 1)
    for row in range(len(ids)):
        known = ids[row, present[row]]
        first = np.sort(np.unique(known, return_index=True)[1])[:k]
        best.scores[row, : len(first)] = scores[row, first]
        best.ids[row, : len(first)] = known[first]
    return best
