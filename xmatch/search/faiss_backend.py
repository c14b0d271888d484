"""Candidates by faiss's flat inner-product index. faiss is loaded when it is used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from xmatch.errors import InputError
from xmatch.search.exact import Found, Keys, certify
from xmatch.search.scores import Float32, Int64, blocks

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
    """Float32 scores by faiss's flat index, certified.

    Args:
        keys: (N, D) and their norms; faiss holds them as float32, whatever their type.
        threads: OpenMP threads while it scans.
        device: `cpu`, or `cuda`, `cuda:1` …: a GPU, by a faiss that is built for it.

    Raises:
        InputError: both kinds of faiss are installed, or the one that is has no GPU index.
    """

    def __init__(self, keys: Keys, threads: int, device: str = "cpu") -> None:
        one_faiss(name for d in importlib.metadata.distributions() if (name := d.metadata["Name"]))
        self.threads, self._keys = threads, keys
        self._faiss = load_faiss()
        width = keys.rows.shape[1]
        self._index = self._faiss.IndexFlatIP(width) if device == "cpu" else self._gpu_index(width, device)
        for _, block in blocks(keys.rows):
            self._index.add(block)

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        return certify(self.candidates, queries, self._keys, k)

    def candidates(self, queries: Float32, depth: int) -> tuple[Float32, Int64]:
        """The `depth` best keys of each query: scores (Q, depth) best first, ids (Q, depth)."""
        with faiss_threads(self._faiss, self.threads):
            scores, ids = self._index.search(queries, depth)
        return scores, ids

    def _gpu_index(self, width: int, device: str) -> Any:
        if not hasattr(self._faiss, "GpuIndexFlatIP"):
            raise InputError(
                f"the search backend 'faiss' was asked for device {device!r}, but the faiss that is installed knows no "
                "GPU. Install vokenray[gpu], or choose the backend torch or device cpu."
            )
        settings = self._faiss.GpuIndexFlatConfig()
        settings.device = int(device.partition(":")[2] or 0)
        settings.useFloat16 = False  # the bound is that of float32 products
        self._resources = self._faiss.StandardGpuResources()
        return self._faiss.GpuIndexFlatIP(self._resources, width, settings)


@contextmanager
def faiss_threads(faiss: Any, threads: int) -> Iterator[None]:
    """Sets faiss's OpenMP threads, a setting of the whole process, for as long as the block runs."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def load_faiss() -> Any:
    """The module, held on its BLAS path."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_PRODUCT
    return faiss
