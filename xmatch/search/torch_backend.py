"""Certified search by blocked matrix products in torch; runs anywhere, needs no compiler.

Scores are made for a block of keys and a block of queries, reduced to the largest of each group of 64 keys, and only
groups that reach a query's line are looked at again; no matrix of all scores exists.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from xmatch.search.exact import (
    LARGEST_SCORE,
    LOST_BELOW,
    Found,
    Keys,
    SearchCounts,
    best_pairs,
    margins,
    score_every_key,
)
from xmatch.search.scores import Float32, Float64, Int64, norms

QUERY_BLOCK = 1024
KEY_BLOCK = 4096
GROUP = 64
MOST_CANDIDATES = 1 << 13
"""Candidates of one query beyond which it is scored against every key."""
NEVER = 3e38


class Rounded(NamedTuple):
    """Rows as they are multiplied, the largest of their norms, and the norms of what rounding lost."""

    rows: torch.Tensor
    norms: Float64
    lost: Float64


class TorchScan:
    """Certified search by torch.

    Args:
        keys: (N, D) and their norms.
        threads: torch's threads while it scans.
        dtype: of the products; bfloat16 where this processor multiplies it faster, else float32, when not given.
    """

    def __init__(self, keys: Keys, threads: int, dtype: torch.dtype | None = None) -> None:
        self.threads, self._keys = threads, keys
        self._dtype = dtype or (torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32)
        self._unit = _power_of_two(np.abs(keys.rows).max(keepdims=True))[0, 0]
        self._centre = keys.rows.mean(0, dtype=np.float64) / self._unit
        blocks = (keys.rows[i : i + KEY_BLOCK].astype(np.float64) for i in range(0, len(keys.rows), KEY_BLOCK))
        parts = [_rounded(block / self._unit - self._centre, self._dtype) for block in blocks]
        padding = torch.zeros((-len(keys.rows) % GROUP, keys.rows.shape[1]), dtype=self._dtype)
        self._rounded = Rounded(
            torch.cat([*(part.rows for part in parts), padding]),
            np.concatenate([part.norms for part in parts]),
            np.concatenate([part.lost for part in parts]),
        )
        self._reach = keys.largest_norm / self._unit + 2 * float(np.linalg.norm(self._centre))

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("highest")  # lower settings round the operands, which the bound knows not of
        try:
            parts = [self._block(queries[i : i + QUERY_BLOCK], k) for i in range(0, len(queries), QUERY_BLOCK)]
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
        counts = SearchCounts(queries=len(queries))
        for part in parts:
            counts = counts.plus(part.counts)
        return Found(np.concatenate([p.scores for p in parts]), np.concatenate([p.rows for p in parts]), counts)

    def _block(self, queries: Float32, k: int) -> Found:
        scan = _Scan(self, queries, k)
        for start in range(0, len(self._rounded.rows), KEY_BLOCK):
            scan.look_at(start, self._rounded.rows[start : start + KEY_BLOCK])
        sure, pairs = scan.candidates()
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        rest = np.setdiff1d(np.arange(len(queries)), sure)
        part = best_pairs(queries[sure], self._keys, pairs, k)
        every = score_every_key(queries[rest], self._keys, k)
        scores[sure], rows[sure] = part.scores, part.rows
        scores[rest], rows[rest] = every.scores, every.rows
        return Found(scores, rows, part.counts.plus(every.counts))


class _Scan:
    """One block of queries on its way over the keys."""

    def __init__(self, owner: TorchScan, queries: Float32, k: int) -> None:
        self.k, self.count = k, len(owner._keys.rows)
        units = _power_of_two(np.abs(queries).max(1, keepdims=True))
        keys, query_norms = owner._rounded, norms(queries)
        query = _rounded(queries / units, owner._dtype)
        self.columns = query.rows.T
        width, u = queries.shape[1], 2.0**-24
        largest, lost = float(keys.norms.max()), float(keys.lost.max())
        centred = largest + lost
        bounds = query.lost * centred + query.norms * lost + 2 * (width + 4) * u * query.norms * largest
        # the small part of the whole reach: this arithmetic, and the double-precision centring before it
        reach = query_norms / units[:, 0] * owner._reach
        self.bounds = bounds * 1.000001 + 2.0**-40 * reach + (width + 4) * LOST_BELOW
        margin = margins(query_norms, owner._keys.largest_norm) / (units[:, 0] * owner._unit)
        self.room = 2 * self.bounds + margin
        self.stored = 2.0**-8 if owner._dtype == torch.bfloat16 else 0.0
        self.best = torch.full((k, len(queries)), -torch.inf)
        self.line = np.full(len(queries), -np.inf)
        self.over = query_norms * owner._keys.largest_norm >= LARGEST_SCORE
        self.found: list[tuple[Int64, Int64, Float32]] = []
        self.noted = np.zeros(len(queries), np.int64)

    def look_at(self, start: int, rows: torch.Tensor) -> None:
        """Notes the pairs of a block of keys that may be among the best, and raises the lines."""
        scores = (rows @ self.columns).float()
        if start + len(rows) > self.count:
            scores[self.count - start :] = -torch.inf
        grouped = scores.view(-1, GROUP, scores.shape[1])
        largest = grouped.amax(1)
        self.best = torch.cat([self.best, largest]).topk(self.k, dim=0).values
        self._raise_lines()
        lines = torch.from_numpy(self.line.astype(np.float32))
        group, query = torch.nonzero(largest >= lines, as_tuple=True)
        inside = grouped[group, :, query]
        pair, place = torch.nonzero((inside >= lines[query, None]) & (inside > -torch.inf), as_tuple=True)
        keys = start + group[pair] * GROUP + place
        self.found.append((query[pair].numpy(), keys.numpy(), inside[pair, place].numpy()))
        self.noted += np.bincount(self.found[-1][0], minlength=len(self.noted))
        self.over |= self.noted > MOST_CANDIDATES + 4 * self.k

    def _raise_lines(self) -> None:
        """Scores below a query's line cannot be among its best; rounded down, to be compared in float32."""
        with np.errstate(invalid="ignore"):
            kth = self.best[-1].double().numpy()
            line = kth - self.stored * np.abs(kth) - self.room
            line -= (1.01 * self.stored + 2.0**-22) * np.abs(line)
        self.line = np.where(self.over, NEVER, np.where(np.isfinite(line), line, -np.inf))

    def candidates(self) -> tuple[Int64, tuple[Int64, Int64]]:
        """Queries whose candidates hold their top k, and those pairs, the queries counted among them."""
        self._raise_lines()
        query, key, score = (np.concatenate(part) for part in zip(*self.found, strict=True))
        keep = (score >= self.line.astype(np.float32)[query]) & ~self.over[query]
        query, key = query[keep], key[keep]
        sure = np.flatnonzero(~self.over)
        order = np.argsort(query, kind="stable")
        return sure, (np.searchsorted(sure, query[order]), key[order])


def _rounded(rows: Float64, dtype: torch.dtype) -> Rounded:
    exact = torch.from_numpy(rows)
    rounded = exact.to(dtype)
    tiny = rounded.abs() < 2.0**-126  # products may read subnormals as zero
    rounded[tiny] = 0
    lost = exact - rounded.double()
    slack = 1 + 1e-6
    return Rounded(rounded, rounded.double().norm(dim=1).numpy() * slack, lost.norm(dim=1).numpy() * slack)


def _power_of_two(largest: Float32) -> Float64:
    """Powers of two that bring positive values into [0.5, 1); 1 for zeros. Dividing by them is exact."""
    return np.ldexp(1.0, np.frexp(largest.astype(np.float64))[1])
