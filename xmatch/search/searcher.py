"""The front door of every search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from xmatch.errors import InputError
from xmatch.search.duplicates import merged_scan
from xmatch.search.exact import Found, Keys, SearchCounts, SearchResult, begin_search, check_rows
from xmatch.search.faiss_backend import FaissScan
from xmatch.search.native_backend import NativeScan, is_fast
from xmatch.search.packed import PackedFiles
from xmatch.search.scores import Float32, Int64, Rows, decode, norms
from xmatch.search.torch_backend import TorchScan, has_fast_bf16
from xmatch.search.triton_backend import TritonScan, has_gpu
from xmatch.search.triton_plan import MOST_KEYS

LARGE_COPY_BYTES = 1 << 28
"""A float32 copy of a half-precision bank above this is worth a slower scan that does without."""


class Scan(Protocol):
    """A backend: proposes candidates as it likes, and answers exactly."""

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query, for 1 <= k <= N and at least one query."""
        ...


BACKENDS: dict[str, Callable[[Keys, int], Scan]] = {
    "native": NativeScan,
    "faiss": FaissScan,
    "torch": TorchScan,
    "triton": TritonScan,
}
ON_DEVICE: dict[str, Callable[[Keys, int, str], Scan]] = {
    "faiss": FaissScan,
    "torch": TorchScan,
    "triton": TritonScan,
}
"""Backends that can be told to scan on a GPU."""


class Searcher:
    """Exact top-k by inner product over a fixed set of keys.

    The score of a pair is its exact inner product, rounded once to float32; results are ordered by that score, equal
    scores by the lowest id. Every backend gives this answer, whatever the batch, the threads or the machine.

    Attributes:
        keys: (N, D) as they were given.
        backend: name of the backend in use.
        counts: what the searches so far took.
    """

    def __init__(
        self,
        keys: Rows,
        backend: str,
        threads: int,
        groups: Int64 | None,
        first_id: int,
        device: str = "cpu",
        packed: PackedFiles | None = None,
    ) -> None:
        self.keys, self.backend = keys, backend
        self.counts = SearchCounts()
        self._ids = np.arange(first_id, first_id + len(keys), dtype=np.int64)
        self._largest_group = 1
        if groups is not None:
            self._ids = groups
            if (np.diff(groups) < 0).any():  # equal scores of two groups must go to the lower group
                order = np.argsort(groups, kind="stable")
                keys, self._ids, packed = keys[order], groups[order], None
            self._largest_group = int(np.unique(groups, return_counts=True)[1].max()) if len(groups) else 1
        self._scan: Scan | None = None
        if keys.size:
            build = partial(_build_scan, backend, threads, device)
            self._scan = merged_scan(Keys(keys, norms(keys)), build, packed)

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
            queries: (Q, D) float32, float16 or bfloat16, finite.
            k: results per query, at least 1.

        Returns:
            Scores (Q, k) and ids (Q, k); where k exceeds the number of keys or groups, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the queries are no matrix of this width.
            InputError: a query is not finite (names the row).
        """
        checked, result = begin_search(queries, k, self.keys.shape[1])
        rows = decode(checked)
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


def _build_scan(backend: str, threads: int, device: str, keys: Keys, packed: PackedFiles | None) -> Scan:
    if device != "cpu":
        return ON_DEVICE[backend](keys, threads, device)
    if backend == "native":
        return NativeScan(keys, threads, packed=packed)
    return BACKENDS[backend](keys, threads)


def build_searcher(
    keys: Rows,
    backend: str = "auto",
    threads: int = 1,
    *,
    groups: npt.NDArray[np.int64] | None = None,
    first_id: int = 0,
    device: str = "cpu",
    packed: PackedFiles | None = None,
) -> Searcher:
    """A searcher over keys.

    Args:
        keys: (N, D), float32, float16 or bfloat16, finite; N may be 0. They are read where they lie, such as in a
            memory-mapped file, and not copied.
        backend: `native`, `faiss`, `torch`, `triton`, or `auto`: the fastest that is there.
        threads: CPU threads of a search.
        groups: (N,) group ids, at least 0: several keys, such as the crops of one image, count as one thing with the
            best of their scores, and the results are group ids. Keys are copied if they do not lie in their order.
        first_id: id of the first key, for a shard of a larger bank; without groups only.
        device: where keys are held and scanned: `cpu`, `cuda` or `cuda:1` …, or `auto`: `cuda` where there is one.
        packed: where the scan layout of these very keys, in this order, is kept; `native` uses it.

    Raises:
        ValueError: the backend is unknown or does not run on that device, or the groups do not fit the keys.
        InputError: a key is not finite (names the row), or the backend or the device is not there.
    """
    if backend not in (*BACKENDS, "auto"):
        raise ValueError(f"unknown search backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    rows = check_rows(keys, "key", width=None)
    if groups is not None:
        if groups.shape != (len(rows),) or groups.dtype != np.int64 or (len(groups) and groups.min() < 0):
            raise ValueError(f"expected groups (N,) int64, 0 or more, got {groups.dtype} {groups.shape}")
        if first_id:
            raise ValueError("groups carry their own ids; first_id must be 0 with them")
    place = _known_device(device)
    name = fastest_backend(len(rows), rows.shape[1], rows.itemsize, place) if backend == "auto" else backend
    if place != "cpu" and name not in ON_DEVICE:
        raise ValueError(f"the search backend {name!r} runs on cpu, not on {place!r}; choose {', '.join(ON_DEVICE)}")
    return Searcher(rows, name, threads, groups, first_id, place, packed)


def fastest_backend(keys: int, width: int, item_bytes: int = 4, device: str = "cpu") -> str:
    """What `auto` takes.

    On a GPU `triton`, or `torch` where that cannot be. On the processor `native` where it is fast, `torch` where
    bfloat16 is, else `faiss`, but for a large bank in half precision, of which it would hold a float32 copy.
    Measurements are in benchmarks/results.

    Args:
        keys: N.
        width: D.
        item_bytes: of one stored value.
        device: `cpu`, or a GPU.
    """
    if device != "cpu":
        return "triton" if has_gpu() and keys <= MOST_KEYS else "torch"
    if is_fast():
        return "native"
    saves_memory = item_bytes < 4 and keys * width * 4 > LARGE_COPY_BYTES
    if has_fast_bf16() or saves_memory or importlib.util.find_spec("faiss") is None:
        return "torch"
    return "faiss"


def _known_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or device.startswith("cpu:"):
        raise ValueError(f"unknown device {device!r}; choose cpu, cuda, cuda:NUMBER or auto")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"search was asked for device {device!r}, but torch finds {torch.cuda.device_count()} CUDA GPUs. Choose "
            "auto or cpu, or install torch for CUDA on a machine with a GPU."
        )
    return device
