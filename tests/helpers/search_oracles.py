"""The answer by definition, and the kinds of vectors that searches are tried on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def exact_score(left: np.ndarray, right: np.ndarray) -> np.float32:
    """The inner product as a fraction, rounded once: the nearer of the two neighbouring floats, half to even."""
    true = sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(left, right)), Fraction(0))
    with np.errstate(over="ignore"):
        near = np.float32(float(true))
        around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    if not np.isfinite(around).all():
        return near
    best = min(around, key=lambda value: (abs(Fraction(float(value)) - true), int(value.view(np.int32)) & 1))
    return best


def oracle(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every score, rounded once, sorted in full by (score, lowest id): scores (Q, min(k, N)) and ids."""
    products = queries[:, None, :].astype(np.float64) * keys[None].astype(np.float64)
    sums, error = products.sum(-1), np.abs(products).sum(-1) * (queries.shape[1] + 2) * 2.0**-53 * 1.01
    with np.errstate(over="ignore"):
        scores, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    for row, key in zip(*np.nonzero(scores != high)):
        scores[row, key] = exact_score(queries[row], keys[key])
    order = np.lexsort((np.broadcast_to(np.arange(len(keys)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


KINDS = ("random", "duplicates", "near", "ulps", "zeros", "scales", "offset", "whole", "tiny", "huge")


def make_keys(kind: str, rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    keys = unit(rng, count, width)
    if kind == "duplicates":
        keys = keys[rng.integers(0, max(1, count // 8), count)]
    elif kind == "near":
        keys = (keys[:1] + 1e-7 * rng.standard_normal((count, width))).astype(np.float32)
    elif kind == "ulps":  # one key, single values moved to their neighbour
        keys = np.repeat(keys[:1], count, axis=0)
        column = rng.integers(0, width, count)
        moved = np.nextafter(keys[np.arange(count), column], np.float32(rng.choice([-2, 2])))
        keys[np.arange(count), column] = moved
    elif kind == "zeros":
        keys[::2] = 0
    elif kind == "scales":
        keys *= (10.0 ** rng.integers(-8, 8, (count, 1))).astype(np.float32)
    elif kind == "offset":
        keys += np.float32(5)
    elif kind == "whole":
        keys = rng.integers(-2, 3, (count, width)).astype(np.float32)
    elif kind == "tiny":
        keys *= np.float32(1e-38)
    elif kind == "huge":
        keys *= np.float32(3e38)
    return np.ascontiguousarray(keys)
