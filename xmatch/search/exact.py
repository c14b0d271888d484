"""From float32 candidates to the exact answer: how far to look, and how to score.

Shapes: Q queries, N keys, D width, C candidates, K results.

A float32 inner product of D terms, summed in any order, differs from the true one by at most
e = g * |q| * |k| with g = D u / (1 - D u), u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
With t the K-th best float32 score, every key of the true top K has a true score of at least t - e, so a float32 score
of at least t - 2e. When the candidates reach below that line, none is missing; otherwise more are asked for, and in
the end the query is scored against every key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Candidates = Callable[[Float32, int], tuple[Float32, Int64]]

EXTRA = 8
"""Candidates asked for beyond k at first; each further round asks for four times as many."""
MAX_DEPTH = 512
"""Candidates beyond which a query is scored against every key instead."""
QUERY_BLOCK = 1024
RESCORE_ELEMENTS = 1 << 22
"""Doubles in one gather of candidate keys, 32 MiB."""


class Certified(NamedTuple):
    """Exact scores (Q, K) and ids (Q, K), and how many queries were scored against every key."""

    scores: Float32
    ids: Int64
    fallbacks: int


def check_rows(rows: npt.NDArray[np.floating], name: str, width: int | None) -> Float32:
    """Rows as a contiguous float32 matrix.

    Raises:
        ValueError: it is no matrix, of another width, or holds NaN or infinity; names the row.
    """
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"expected {name} rows as a matrix (n, {width or 'D'}), got shape {rows.shape}")
    if rows.dtype not in (np.float32, np.float16):
        raise ValueError(f"expected {name} rows as float32 or float16, got {rows.dtype}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(broken):
        raise ValueError(f"{name} {broken[0]} holds NaN or infinity ({len(broken)} of {len(rows)} do)")
    return rows


def certify(candidates: Candidates, queries: Float32, keys: Float32, k: int, largest_key: float) -> Certified:
    """The exact top k, from a scan that is only accurate to float32.

    Args:
        candidates: the scan.
        queries: (Q, D).
        keys: (N, D), N >= k.
        k: results per query.
        largest_key: largest L2 norm among the keys.
    """
    scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    width = queries.shape[1]
    gamma = 1.05 * (width + 2) * 2.0**-24  # the factor covers 1 / (1 - D u) and the rounding of the norms
    bounds = gamma * np.linalg.norm(queries.astype(np.float64), axis=1) * largest_key
    open_rows = np.arange(len(queries))
    depth = min(len(keys), k + EXTRA)
    while len(open_rows) and depth <= max(MAX_DEPTH, k + EXTRA):
        left = []
        for start in range(0, len(open_rows), QUERY_BLOCK):
            rows = open_rows[start : start + QUERY_BLOCK]
            near, found = candidates(queries[rows], depth)
            enough = (near[:, -1] < near[:, k - 1] - 2 * bounds[rows]) | (depth == len(keys))
            sure = rows[enough]
            scores[sure], ids[sure] = rescore(queries[sure], keys, found[enough], k)
            left.append(rows[~enough])
        open_rows = np.concatenate(left)
        if depth == len(keys):
            break
        depth = min(len(keys), 4 * depth)
    everything = np.arange(len(keys))[None, :]
    for row in open_rows:
        scores[row], ids[row] = (part[0] for part in rescore(queries[row : row + 1], keys, everything, k))
    return Certified(scores, ids, len(open_rows))


def rescore(queries: Float32, keys: Float32, candidates: Int64, k: int) -> tuple[Float32, Int64]:
    """The best k of each query's candidates by double-precision scores rounded to float32, ties to the lowest id.

    Args:
        queries: (Q, D).
        keys: (N, D).
        candidates: (Q, C) ids.
        k: at most C.
    """
    count, depth = candidates.shape
    scores, ids = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    step = max(1, RESCORE_ELEMENTS // max(1, depth * keys.shape[1]))
    for start in range(0, count, step):
        block = candidates[start : start + step]
        exact = exact_scores(queries[start : start + step], keys[block])
        order = np.lexsort((block, -exact), axis=1)[:, :k]
        scores[start : start + step] = np.take_along_axis(exact, order, 1)
        ids[start : start + step] = np.take_along_axis(block, order, 1)
    return scores, ids


def exact_scores(queries: Float32, keys: Float32) -> Float32:
    """Double-precision inner products of (Q, D) queries with their (Q, C, D) keys, rounded to float32, (Q, C).

    The sum runs over the width in a fixed order for each pair, so a score does not depend on its neighbours.
    """
    products = queries[:, None, :].astype(np.float64) * keys
    scores: Float32 = products.sum(-1).astype(np.float32)
    return scores
