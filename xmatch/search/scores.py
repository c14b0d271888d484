"""The score of a pair: the exact inner product of two float32 vectors, rounded once to float32.

Shapes: Q queries, N keys, D width, P pairs.

A product of two float32 numbers is exact in double precision. A double-precision sum of D of them, in any order, is off
by at most g |q| |k| with g = D u / (1 - D u), u = 2^-53 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
Where both ends of that interval round to the same float32, that is the score; elsewhere the sum is done exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

PAIR_ELEMENTS = 1 << 21
"""Doubles in one gather of keys, 16 MiB."""


class PairScores(NamedTuple):
    """Scores (P,) float32, and how many of them took an exact sum."""

    scores: Float32
    exact_sums: int


def norms(rows: Float32) -> Float64:
    """L2 norms (n,), no smaller than the true ones."""
    found = np.empty(len(rows))
    step = max(1, PAIR_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        found[start : start + step] = np.sqrt(np.einsum("nd,nd->n", block, block))
    return found * (1 + 1e-6)  # far more than a double-precision sum is off, for any width


def sum_error(width: int) -> float:
    """How far a double-precision inner product may be off, as a part of |q| |k|."""
    return (width + 2) * 2.0**-53 * 1.01


def pair_scores(queries: Float32, keys: Float32, pairs: tuple[Int64, Int64], key_norms: Float64) -> PairScores:
    """The scores of chosen pairs.

    Args:
        queries: (Q, D).
        keys: (N, D).
        pairs: rows of the queries (P,) and of the keys (P,).
        key_norms: (N,) of `norms`.
    """
    query_rows, key_rows = pairs
    scores, exact_sums = np.empty(len(query_rows), np.float32), 0
    width = queries.shape[1]
    query_norms = norms(queries)
    step = max(1, PAIR_ELEMENTS // max(1, width))
    for start in range(0, len(query_rows), step):
        left, right = query_rows[start : start + step], key_rows[start : start + step]
        products = queries[left].astype(np.float64) * keys[right]
        sums = products.sum(1)
        error = sum_error(width) * query_norms[left] * key_norms[right]
        with np.errstate(over="ignore"):
            low, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
        open_pairs = np.flatnonzero(low != high)
        for place in open_pairs:
            low[place] = exact_sum(products[place])
        exact_sums += len(open_pairs)
        scores[start : start + step] = low + np.float32(0)  # never -0
    return PairScores(scores, exact_sums)


def exact_sum(products: Float64) -> np.float32:
    """The exact sum of doubles, rounded once to float32, half to even.

    `math.fsum` rounds it to double first. When that lost something, the last bit is made odd, so that rounding again
    cannot go the wrong way (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008).
    """
    values = products.tolist()
    total = math.fsum(values)
    lost = math.fsum([*values, -total])
    if lost and not int(np.float64(total).view(np.int64)) & 1:
        total = math.nextafter(total, math.copysign(math.inf, lost))
    with np.errstate(over="ignore"):
        return np.float32(total)
