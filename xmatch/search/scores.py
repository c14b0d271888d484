"""The score of a pair: the exact inner product of two stored vectors, rounded once to float32.

Shapes: Q queries, N keys, D width, P pairs.

A product of two float32 numbers is exact in double precision. A double-precision sum of D of them, in any order, is off
by at most g |q| |k| with g = D u / (1 - D u), u = 2^-53 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
Where both ends of that interval round to the same float32, that is the score; elsewhere the sum is done exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
"""A matrix of float32, float16 or bfloat16 (ml_dtypes), as it is stored, perhaps in a memory-mapped file."""

PAIR_ELEMENTS = 1 << 17
"""Doubles in one gather of keys: 1 MiB, so that they stay in cache."""
BLOCK_ELEMENTS = 1 << 18
"""Values of a bank that are converted at a time."""


class PairScores(NamedTuple):
    """Scores (P,) float32, and how many of them took an exact sum."""

    scores: Float32
    exact_sums: int


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether rows of it can be searched: float32, float16 or bfloat16, in the machine's byte order."""
    return dtype in (np.float32, np.float16) or dtype.name == "bfloat16"


def decode(rows: Rows) -> Float32:
    """The values as float32, which holds each of them exactly; float32 itself is not copied."""
    if rows.dtype in (np.float32, np.float16):
        return rows.astype(np.float32, copy=False)
    # bfloat16 is the upper half of a float32
    return (np.ascontiguousarray(rows).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def blocks(rows: Rows) -> Iterator[tuple[int, Float32]]:
    """The rows as float32, some at a time: the number of the first, and (n, D) of them."""
    step = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield start, decode(rows[start : start + step])


def norms(rows: Rows) -> Float64:
    """L2 norms (n,), no smaller than the true ones."""
    found = np.empty(len(rows))
    for start, block in blocks(rows):
        wide = block.astype(np.float64)
        found[start : start + len(block)] = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return found * (1 + 1e-6)  # far more than a double-precision sum is off, for any width


def sum_error(width: int) -> float:
    """How far a double-precision inner product may be off, as a part of |q| |k|."""
    return (width + 2) * 2.0**-53 * 1.01


def pair_scores(
    queries: Float32, keys: Rows, pairs: tuple[Int64, Int64], key_norms: Float64 | None = None
) -> PairScores:
    """The scores of chosen pairs.

    Args:
        queries: (Q, D).
        keys: (N, D).
        pairs: rows of the queries (P,) and of the keys (P,).
        key_norms: (N,) of `norms`; those of the chosen keys are computed when not given.
    """
    query_rows, key_rows = pairs
    sums, sizes = np.empty(len(query_rows)), np.empty(len(query_rows))
    wide = queries.astype(np.float64)
    step = max(1, PAIR_ELEMENTS // max(1, queries.shape[1]))
    for start in range(0, len(sums), step):
        left, right = query_rows[start : start + step], key_rows[start : start + step]
        gathered = decode(keys.take(right, 0))
        np.einsum("pd,pd->p", gathered.astype(np.float64), wide.take(left, 0), out=sums[start : start + step])
        sizes[start : start + step] = norms(gathered) if key_norms is None else key_norms.take(right)
    error = (sum_error(queries.shape[1]) * norms(queries)).take(query_rows) * sizes
    with np.errstate(over="ignore"):
        scores, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    open_pairs = np.flatnonzero(scores != high)
    for place in open_pairs:
        scores[place] = exact_sum(wide[query_rows[place]] * decode(keys[key_rows[place]]))
    scores += np.float32(0)  # never -0
    return PairScores(scores, len(open_pairs))


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
