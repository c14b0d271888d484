"""Indexes of faiss that propose candidates by inner product. faiss is loaded when one is built or read.

Inverted lists: Jégou, Douze, Schmid, Product quantization for nearest neighbor search, 2011. HNSW: Malkov, Yashunin,
2018. CAGRA: Ootomo et al., 2024, in faiss builds with cuVS.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xmatch.errors import InputError
from xmatch.search.approximate_config import ApproximateConfig, Kind
from xmatch.search.faiss_backend import faiss_threads, load_faiss
from xmatch.search.scores import Float32, Int64, Rows, blocks, decode


class CandidateIndex:
    """An index of faiss that holds N keys.

    Attributes:
        count: N.
    """

    def __init__(self, index: Any, kind: Kind, settings: ApproximateConfig) -> None:
        self._index, self._kind, self._settings = index, kind, settings
        self.count = int(index.ntotal)
        if kind in ("ivf", "ivfpq"):
            index.nprobe = settings.probes

    def candidates(self, queries: Float32, depth: int, threads: int) -> Int64:
        """Rows (Q, depth) of likely keys, in no order; -1 where the index found fewer."""
        faiss = load_faiss()
        if self._kind in ("hnsw", "cagra"):
            self._index.hnsw.efSearch = max(self._settings.search_effort, depth)
        with faiss_threads(faiss, threads):
            found: Int64 = self._index.search(queries, depth)[1]
        return found

    def write(self, path: str) -> None:
        """Write it to a file."""
        load_faiss().write_index(self._index, path)


def build_index(keys: Rows, kind: Kind, settings: ApproximateConfig) -> CandidateIndex:
    """Train an index on a sample of the keys, and add all of them, block by block.

    Raises:
        InputError: the faiss that is installed cannot build this kind.
    """
    faiss = load_faiss()
    with faiss_threads(faiss, settings.threads):
        if kind == "cagra":
            return CandidateIndex(_cagra(faiss, keys, settings), kind, settings)
        index = _hnsw(faiss, keys, settings) if kind == "hnsw" else _lists(faiss, keys, kind, settings)
        index.train(_sample(keys, settings))
        for _, block in blocks(keys):
            index.add(block)
    return CandidateIndex(index, kind, settings)


def read_index(path: str, kind: Kind, settings: ApproximateConfig) -> CandidateIndex:
    """Read an index; inverted lists are mapped into memory, not read.

    Raises:
        RuntimeError: faiss cannot read it.
    """
    faiss = load_faiss()
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if kind in ("ivf", "ivfpq") else 0
    return CandidateIndex(faiss.read_index(path, flags), kind, settings)


def _lists(faiss: Any, keys: Rows, kind: Kind, settings: ApproximateConfig) -> Any:
    width, metric = keys.shape[1], faiss.METRIC_INNER_PRODUCT
    centres = faiss.IndexFlatIP(width)
    if kind == "ivf":
        bf16 = faiss.ScalarQuantizer.QT_bf16
        index = faiss.IndexIVFScalarQuantizer(centres, width, settings.lists, bf16, metric)
    else:
        index = faiss.IndexIVFPQ(centres, width, settings.lists, settings.code_bytes, 8, metric)
        index.pq.cp.seed = settings.seed
    index.cp.seed = settings.seed
    index.cp.max_points_per_centroid = settings.train_keys  # the sample is drawn here, not once more in faiss
    return index


def _hnsw(faiss: Any, keys: Rows, settings: ApproximateConfig) -> Any:
    bf16 = faiss.ScalarQuantizer.QT_bf16
    index = faiss.IndexHNSWSQ(keys.shape[1], bf16, settings.links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.build_effort
    return index


def _cagra(faiss: Any, keys: Rows, settings: ApproximateConfig) -> Any:
    if not (hasattr(faiss, "GpuIndexCagra") and faiss.get_num_gpus()):
        raise InputError(
            "approximate search of kind 'cagra' needs a GPU and a faiss built for it with cuVS, which is not "
            "installed. Choose ivf, ivfpq or hnsw."
        )
    graph = faiss.GpuIndexCagraConfig()
    graph.graph_degree, graph.intermediate_graph_degree = settings.links, 2 * settings.links
    built = faiss.GpuIndexCagra(faiss.StandardGpuResources(), keys.shape[1], faiss.METRIC_INNER_PRODUCT, graph)
    built.train(decode(keys))
    index = faiss.IndexHNSWCagra()  # the graph as HNSW's lowest layer, to be searched and saved on the processor
    built.copyTo(index)
    return index


def _sample(keys: Rows, settings: ApproximateConfig) -> Float32:
    """A random sample of the keys, in their order."""
    size = min(len(keys), settings.train_keys or len(keys))
    rows = np.random.default_rng(settings.seed).choice(len(keys), size, replace=False)
    return decode(keys[np.sort(rows)])
