"""Candidates by faiss's flat inner-product index; the only module that knows faiss, and only when it is used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError

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
    """Float32 scores by faiss IndexFlatIP.

    Args:
        keys: (N, D) float32.
        threads: OpenMP threads while it scans.
    """

    def __init__(self, keys: npt.NDArray[np.float32], threads: int) -> None:
        one_faiss(name for d in importlib.metadata.distributions() if (name := d.metadata["Name"]))
        self.threads = threads
        self._faiss = _load()
        self._index = self._faiss.IndexFlatIP(keys.shape[1])
        self._index.add(keys)

    def candidates(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
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
