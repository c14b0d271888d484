"""Candidates by faiss's flat inner-product index; the only module that knows faiss, and only when it is used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

from xmatch.errors import InputError
from xmatch.search.exact import Found, Keys, certify
from xmatch.search.scores import Float32, Int64

BLAS_FROM_PRODUCT = 1
"""faiss leaves BLAS for a path 5 to 20 times slower when queries times width fall below this threshold of its own
(128,000 in faiss 1.15); 1 keeps it on BLAS. It is a setting of the whole process."""


def one_faiss(installed: Iterable[str]) -> None:
    """Check that not both kinds of faiss are installed: they share one module and break each other.

    Args:
        installed: names of installed distributions.

    Raises:
        InputError: both are there.
    """
    kinds = sorted({name.lower() for name in installed if name.lower().startswith("faiss")})
    cpu, gpu = [k for k in kinds if k == "faiss-cpu"], [k for k in kinds if k.startswith("faiss-gpu")]
    if cpu and gpu:
        raise InputError(
            f"both {cpu[0]} and {gpu[0]} are installed, and they overwrite each other. Uninstall both, then install "
            "vokenray[cpu] or vokenray[gpu]."
        )


class FaissScan:
    """Float32 scores by faiss IndexFlatIP, certified.

    Args:
        keys: (N, D) and their norms.
        threads: OpenMP threads while it scans.
    """

    def __init__(self, keys: Keys, threads: int) -> None:
        one_faiss(name for d in importlib.metadata.distributions() if (name := d.metadata["Name"]))
        self.threads, self._keys = threads, keys
        self._faiss = _load()
        self._index = self._faiss.IndexFlatIP(keys.rows.shape[1])
        self._index.add(keys.rows)

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        return certify(self.candidates, queries, self._keys, k)

    def candidates(self, queries: Float32, depth: int) -> tuple[Float32, Int64]:
        """The `depth` best keys of each query: scores (Q, depth) best first, ids (Q, depth)."""
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(self.threads)
        try:
            scores, ids = self._index.search(queries, depth)
        finally:
            self._faiss.omp_set_num_threads(before)
        return scores, ids


def _load() -> Any:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_PRODUCT
    return faiss
