"""The front door of every search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from xmatch.search.exact import certify, check_rows
from xmatch.search.faiss_backend import FaissScan
from xmatch.search.torch_backend import TorchScan

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Scan(Protocol):
    """A backend: finds candidates by float32 scores. Exactness is not its business."""

    def candidates(self, queries: Float32, depth: int) -> tuple[Float32, Int64]:
        """The `depth` best keys by its own float32 scores: scores (Q, depth) best first, ids (Q, depth)."""
        ...


BACKENDS: dict[str, Callable[[Float32, int], Scan]] = {"faiss": FaissScan, "torch": TorchScan}


class SearchResult(NamedTuple):
    """Scores (Q, k) float32 and ids (Q, k) int64, best first."""

    scores: Float32
    ids: Int64


class Searcher:
    """Exact top-k by inner product over a fixed set of keys.

    The score of a pair is its inner product in double precision, rounded to float32; results are ordered by that
    score, equal scores by the lowest id. The backend only proposes candidates, so every backend gives the same answer.
    """

    def __init__(self, keys: Float32, backend: str, threads: int) -> None:
        self.keys, self.backend = keys, backend
        self._scan = BACKENDS[backend](keys, threads)
        self._largest_key = float(np.sqrt((keys.astype(np.float64) ** 2).sum(1).max())) if len(keys) else 0.0
        self.fallbacks = 0

    def search(self, queries: Float32, k: int) -> SearchResult:
        """The k best keys of every query.

        Args:
            queries: (Q, D) float32, finite.
            k: results per query, at least 1.

        Returns:
            Scores (Q, k) and ids (Q, k); where k exceeds the number of keys, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the queries are of another width or not finite (names the row).
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = check_rows(queries, "query", width=self.keys.shape[1])
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        depth = min(k, len(self.keys))
        if depth and len(queries):
            found = certify(self._scan.candidates, queries, self.keys, depth, self._largest_key)
            scores[:, :depth], ids[:, :depth] = found.scores, found.ids
            self.fallbacks += found.fallbacks
        return SearchResult(scores, ids)


def build_searcher(keys: npt.NDArray[np.floating], backend: str = "auto", threads: int = 1) -> Searcher:
    """A searcher over keys.

    Args:
        keys: (N, D), float32 or float16, finite; N may be 0.
        backend: `faiss`, `torch`, or `auto`: faiss where it is installed.
        threads: CPU threads of a search.

    Raises:
        ValueError: the backend is unknown, or a key is not finite (names the row).
    """
    name = fastest_backend() if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"unknown search backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    return Searcher(check_rows(keys, "key", width=None), name, threads)


def fastest_backend() -> str:
    """`faiss` where it is installed, else `torch`."""
    return "faiss" if importlib.util.find_spec("faiss") else "torch"
