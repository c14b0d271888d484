"""Certified search by blocked matrix products in torch, on the processor or a GPU; needs no compiler.

Keys lie in tiles, rounded to bfloat16. A tile is multiplied with a block of queries, in bfloat16 where that is fast.
The scores are reduced to the largest of every 8 keys, of every 64, and more, and only groups that reach a query's line
are looked into; no matrix of all scores exists. Candidates are scored again on the processor (docs/search.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from xmatch.search.exact import LARGEST_SCORE, Found, Keys, SearchCounts, best_pairs, margins, score_every_key
from xmatch.search.scores import Float32, Float64, blocks, norms
from xmatch.search.torch_scan import Bank, scan

TILE_KEYS = 1 << 14
TILE_SCORES = 1 << 22
"""Scores held at a time, 8 MiB of bfloat16."""
MOST_QUERIES = 1024
"""Queries whose candidates are scored together."""
FEW_KEYS = 256
"""Up to here every key is scored in double precision: that costs less than a scan."""
GROUP = 256
"""Tiles hold a multiple of so many keys."""
SLACK = 1 + 1e-6
"""By which norms are enlarged, far more than their double-precision sums are off."""
FLUSHED = 2.0**-120
"""What a value of a scaled vector may lose by underflow or by being read as zero, with room to spare."""


class TorchScan:
    """Certified search by torch.

    While it searches, it sets torch's threads and keeps torch from rounding float32 operands or partial sums; these are
    settings of the whole process, and are put back.

    Args:
        keys: (N, D) and their norms.
        threads: torch's threads while it scans.
        device: where the keys are held and multiplied: `cpu`, `cuda`, `cuda:1` …
        dtype: of the products; bfloat16 on a GPU and where this processor multiplies it faster, else float32.
    """

    def __init__(self, keys: Keys, threads: int, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.threads, self._keys, self._device = threads, keys, torch.device(device)
        self._dtype = dtype or (torch.bfloat16 if device != "cpu" or has_fast_bf16() else torch.float32)
        self._unit = float(_powers(np.array([max(float(np.abs(b).max()) for _, b in blocks(keys.rows))]))[0])
        total = sum(b.sum(0, dtype=np.float64) for _, b in blocks(keys.rows))
        self._centre: Float64 = np.asarray(total) / (len(keys.rows) * self._unit)
        self._bank = self._pack()
        self._buffers: list[
            torch.Tensor
        ] = []  # one for each search at a time, kept: fresh memory costs as much as a scan
        self._reach = keys.largest_norm / self._unit + 2 * float(np.linalg.norm(self._centre))

    def _pack(self) -> Bank:
        count, width = self._keys.rows.shape
        tiles = -(-count // TILE_KEYS)
        held = -(-count // (tiles * GROUP)) * GROUP
        packed = torch.zeros((tiles, held, width), dtype=torch.bfloat16, device=self._device)
        largest, lost = 0.0, 0.0
        for start, block in blocks(self._keys.rows):
            exact = torch.from_numpy(block.astype(np.float64) / self._unit - self._centre)
            rounded = exact.to(torch.bfloat16)
            row = torch.arange(start, start + len(block), device=self._device)
            packed[row % tiles, row // tiles] = rounded.to(self._device)
            wide = rounded.double()
            largest = max(largest, float(wide.norm(dim=1).max()))
            lost = max(lost, float((exact - wide).norm(dim=1).max()))
        return Bank(packed, SLACK * largest, SLACK * lost + width * FLUSHED)

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        if len(self._keys.rows) <= max(FEW_KEYS, 2 * k):
            every = score_every_key(queries, self._keys, k)
            counts = every.counts._replace(queries=len(queries), candidates=every.counts.rescored, fallbacks=0)
            return every._replace(counts=counts)
        with exact_products(self.threads):
            parts = [self._block(queries[i : i + MOST_QUERIES], k) for i in range(0, len(queries), MOST_QUERIES)]
        counts = SearchCounts(queries=len(queries))
        for part in parts:
            counts = counts.plus(part.counts)
        return Found(np.concatenate([p.scores for p in parts]), np.concatenate([p.rows for p in parts]), counts)

    def _block(self, queries: Float32, k: int) -> Found:
        held = self._bank.rows.shape[1]
        step = min(MOST_QUERIES, TILE_SCORES // held)
        asked = self._rounded(queries)
        rooms = torch.from_numpy(asked.room).to(self._device)
        buffer = self._buffers.pop() if self._buffers else rooms.new_empty(step * held, dtype=self._dtype)
        parts = [
            scan(self._bank, asked.rows[i : i + step], rooms[i : i + step], k, buffer)
            for i in range(0, len(queries), step)
        ]
        self._buffers.append(buffer)
        is_sure = np.concatenate([part.is_sure for part in parts]) & asked.is_bounded
        pair_queries = np.concatenate([part.queries + i * step for i, part in enumerate(parts)])
        pair_keys = np.concatenate([part.rows for part in parts])
        if is_sure.all():
            return best_pairs(queries, self._keys, (pair_queries, pair_keys), k)
        keep = is_sure[pair_queries]
        pairs = (np.cumsum(is_sure) - 1)[pair_queries[keep]], pair_keys[keep]
        found = best_pairs(queries[is_sure], self._keys, pairs, k)
        every = score_every_key(queries[~is_sure], self._keys, k)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores[is_sure], rows[is_sure] = found.scores, found.rows
        scores[~is_sure], rows[~is_sure] = every.scores, every.rows
        return Found(scores, rows, found.counts.plus(every.counts))

    def _rounded(self, queries: Float32) -> _Asked:
        bank, width, u = self._bank, queries.shape[1], 2.0**-24
        query_norms = norms(queries)
        units = _powers(np.abs(queries).max(1))
        half = np.ldexp(np.float32(1), -(np.frexp(units)[1] - 1) // 2)  # a whole unit's inverse may overflow
        exact = torch.from_numpy(queries * half[:, None] * (1 / units / half).astype(np.float32)[:, None])
        rounded = exact.to(self._dtype)
        size = SLACK * query_norms / units
        lost = torch.linalg.vector_norm(exact - rounded, dim=1, dtype=torch.float64).numpy()
        lost = SLACK * lost + width * FLUSHED
        bounds = lost * (bank.largest + bank.lost) + (size + lost) * bank.lost
        bounds += 4 * (width + 4) * u * (size + lost) * bank.largest  # as the tensor cores of GPUs need
        # the small part of the whole reach: this arithmetic, and the double-precision centring before it
        bounds = bounds * 1.000001 + 2.0**-40 * size * self._reach + width * FLUSHED
        margin = margins(query_norms, self._keys.largest_norm) / (units * self._unit)
        is_bounded = query_norms * self._keys.largest_norm < LARGEST_SCORE
        return _Asked(rounded.to(self._device), 2 * bounds + margin, is_bounded)


class _Asked(NamedTuple):
    """Rounded queries (Q, D), how far below the k-th best score candidates reach (Q,), and whether that holds (Q,)."""

    rows: torch.Tensor
    room: Float64
    is_bounded: np.ndarray[tuple[int], np.dtype[np.bool_]]


def has_fast_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 faster than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def exact_products(threads: int) -> Iterator[None]:
    """Torch with so many threads, and products that bounds hold for; settings of the process, which are put back."""
    cuda = torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    reduced = cuda.allow_bf16_reduced_precision_reduction
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # lower settings round the operands, which the bound knows not of
    cuda.allow_bf16_reduced_precision_reduction = False  # else parts of a sum may be added in bfloat16
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        cuda.allow_bf16_reduced_precision_reduction = reduced


def _powers(largest: Float64 | Float32) -> Float64:
    """Powers of two that bring positive values into [0.5, 1); 1 for zeros. Dividing by them is exact."""
    return np.ldexp(1.0, np.frexp(largest.astype(np.float64))[1])
