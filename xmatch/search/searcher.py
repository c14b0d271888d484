"""The front door of every search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from xmatch.search.exact import Found, Keys, SearchCounts, SearchResult, check_rows
from xmatch.search.faiss_backend import FaissScan
from xmatch.search.native_backend import NativeScan, is_fast
from xmatch.search.scores import Float32, Int64, norms
from xmatch.search.torch_backend import TorchScan

TORCH_FROM_KEYS, TORCH_FROM_WIDTH = 20_000, 256
"""From here on torch's bf16 products beat faiss, where the processor has them: benchmarks/results/2026-11-21-search.md,
at 50,000 keys and widths 64 and 512; the point in between is a guess."""


class Scan(Protocol):
    """A backend: proposes candidates as it likes, and answers exactly."""

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query, for 1 <= k <= N and at least one query."""
        ...


BACKENDS: dict[str, Callable[[Keys, int], Scan]] = {"native": NativeScan, "faiss": FaissScan, "torch": TorchScan}


class Searcher:
    """Exact top-k by inner product over a fixed set of keys.

    The score of a pair is its exact inner product, rounded once to float32; results are ordered by that score, equal
    scores by the lowest id. Every backend gives this answer, whatever the batch, the threads or the machine.

    Attributes:
        keys: (N, D) float32.
        backend: name of the backend in use.
        counts: what the searches so far took.
    """

    def __init__(self, keys: Float32, backend: str, threads: int, groups: Int64 | None, first_id: int) -> None:
        self.keys, self.backend = keys, backend
        self.counts = SearchCounts()
        self._ids = np.arange(first_id, first_id + len(keys), dtype=np.int64)
        self._largest_group = 1
        if groups is not None:
            order = np.argsort(groups, kind="stable")  # equal scores of two groups then go to the lower group
            keys, self._ids = keys[order], groups[order]
            self._largest_group = int(np.unique(groups, return_counts=True)[1].max()) if len(groups) else 1
        self._scan = BACKENDS[backend](Keys(keys, norms(keys)), threads) if keys.size else None

    @property
    def key_count(self) -> int:
        """Keys that are searched."""
        return len(self.keys)

    @property
    def fallbacks(self) -> int:
        """Queries so far that had to be scored against every key."""
        return self.counts.fallbacks

    def search(self, queries: npt.NDArray[np.floating], k: int) -> SearchResult:
        """The k best keys, or the k best groups by their best key, of every query.

        Args:
            queries: (Q, D) float32 or float16, finite.
            k: results per query, at least 1.

        Returns:
            Scores (Q, k) and ids (Q, k); where k exceeds the number of keys or groups, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the queries are no matrix of this width.
            InputError: a query is not finite (names the row).
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        rows = check_rows(queries, "query", width=self.keys.shape[1])
        result = SearchResult(np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64))
        if not (len(rows) and len(self.keys)):
            return result
        if self._scan is None:  # vectors of no width: every score is 0
            depth = min(k, len(self.keys))
            unique = np.unique(self._ids)[:depth]
            result.scores[:, : len(unique)], result.ids[:, : len(unique)] = 0, unique
            return result
        if self._largest_group > 1:
            self._search_groups(rows, k, result)
        else:
            depth = min(k, len(self.keys))
            found = self._scan.top(rows, depth)
            result.scores[:, :depth], result.ids[:, :depth] = found.scores, self._ids[found.rows]
            self.counts = self.counts.plus(found.counts)
        return result

    def _search_groups(self, queries: Float32, k: int, result: SearchResult) -> None:
        """Goes deeper until k groups are among the best keys: these are then the best groups (docs/search.md)."""
        assert self._scan is not None
        enough = min(len(self.keys), (k - 1) * self._largest_group + 1)
        depth, open_rows = min(enough, 2 * k), np.arange(len(queries))
        while len(open_rows):
            found = self._scan.top(queries[open_rows], depth)
            counts = found.counts if depth == min(enough, 2 * k) else found.counts._replace(queries=0)
            self.counts = self.counts.plus(counts)
            left = []
            for row, scores, ids in zip(open_rows, found.scores, self._ids[found.rows], strict=True):
                first = np.sort(np.unique(ids, return_index=True)[1])[:k]
                result.scores[row, : len(first)], result.ids[row, : len(first)] = scores[first], ids[first]
                if len(first) < k and depth < enough:
                    left.append(row)
            open_rows, depth = np.array(left, np.int64), min(enough, 4 * depth)


def build_searcher(
    keys: npt.NDArray[np.floating],
    backend: str = "auto",
    threads: int = 1,
    *,
    groups: npt.NDArray[np.int64] | None = None,
    first_id: int = 0,
) -> Searcher:
    """A searcher over keys.

    Args:
        keys: (N, D), float32 or float16, finite; N may be 0.
        backend: `native`, `faiss`, `torch`, or `auto`: the fastest that is there.
        threads: CPU threads of a search.
        groups: (N,) group ids, at least 0: several keys, such as the crops of one image, count as one thing with the
            best of their scores, and the results are group ids.
        first_id: id of the first key, for a shard of a larger bank; without groups only.

    Raises:
        ValueError: the backend is unknown, or the groups do not fit the keys.
        InputError: a key is not finite (names the row), or the backend is not installed.
    """
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"unknown search backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    rows = check_rows(keys, "key", width=None)
    if groups is not None:
        if groups.shape != (len(rows),) or groups.dtype != np.int64 or (len(groups) and groups.min() < 0):
            raise ValueError(f"expected groups (N,) int64, 0 or more, got {groups.dtype} {groups.shape}")
        if first_id:
            raise ValueError("groups carry their own ids; first_id must be 0 with them")
    name = fastest_backend(*rows.shape) if backend == "auto" else backend
    return Searcher(rows, name, threads, groups, first_id)


def fastest_backend(keys: int, width: int) -> str:
    """What `auto` takes: `native` where it is fast, else what measurements say of torch and faiss."""
    if is_fast():
        return "native"
    has_bf16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    torch_is_faster = has_bf16 and keys >= TORCH_FROM_KEYS and width >= TORCH_FROM_WIDTH
    return "torch" if torch_is_faster or importlib.util.find_spec("faiss") is None else "faiss"
