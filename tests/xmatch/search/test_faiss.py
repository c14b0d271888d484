"""The faiss backend on its own: what it makes of scores that are off, and of a GPU that is not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.errors import InputError
from xmatch.search import faiss_backend
from xmatch.search.exact import Keys, certify
from xmatch.search.faiss_backend import FaissScan
from xmatch.search.scores import norms


class FlatConfig:
    """As faiss has it: values to be set."""

    device = -1
    useFloat16 = True


class FlatIndex:
    """Float32 scores as a GPU might give them: each off by what a sum of D products may be, in an order to match."""

    def __init__(self, resources: object, width: int, config: FlatConfig) -> None:
        self.rows, self.config = np.empty((0, width), np.float32), config
        self.rng = np.random.default_rng(0)

    def add(self, rows: np.ndarray) -> None:
        self.rows = np.concatenate([self.rows, rows])

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        true = queries.astype(np.float64) @ self.rows.astype(np.float64).T
        reach = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(self.rows, axis=1)
        off = queries.shape[1] * 2.0**-24 * reach * self.rng.choice([-1, 1], true.shape)
        scores = (true + off).astype(np.float32)
        order = np.argsort(-scores, axis=1)[:, :depth]
        return np.take_along_axis(scores, order, 1), order


class GpuFaiss:
    """The part of a faiss for GPUs that the backend uses."""

    StandardGpuResources = object
    GpuIndexFlatConfig = FlatConfig
    GpuIndexFlatIP = FlatIndex

    @staticmethod
    def omp_get_max_threads() -> int:
        return 1

    @staticmethod
    def omp_set_num_threads(threads: int) -> None:
        assert threads == 1


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 150),
    width=st.integers(1, 40),
    k=st.integers(1, 12),
    kind=st.sampled_from(["random", "duplicates", "near", "ulps", "offset", "whole"]),
)
def test_scores_that_are_off_change_nothing(seed: int, count: int, width: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    keys, queries = make_keys(kind, rng, count, width), unit(rng, 15, width)
    k = min(k, count)
    index = FlatIndex(None, width, FlatConfig())
    index.add(keys)
    found = certify(index.search, queries, Keys(keys, norms(keys)), k)
    scores, ids = oracle(queries, keys, k)
    np.testing.assert_array_equal(found.rows, ids)
    np.testing.assert_array_equal(found.scores, scores)


def test_a_gpu_is_asked_for_float32_and_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys = make_keys("near", rng, 300, 24)
    queries = unit(rng, 40, 24)
    monkeypatch.setattr(faiss_backend, "load_faiss", GpuFaiss)
    scan = FaissScan(Keys(keys, norms(keys)), 1, "cuda:2")
    assert (scan._index.config.device, scan._index.config.useFloat16) == (2, False)
    true = oracle(queries, keys, 5)[1]
    assert (scan.candidates(queries, 5)[1] != true).any()  # the scan's own order is wrong
    np.testing.assert_array_equal(scan.top(queries, 5).rows, true)


def test_a_faiss_without_gpus_is_refused() -> None:
    keys = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="the faiss that is installed knows no GPU"):
        FaissScan(Keys(keys, norms(keys)), 1, "cuda")


def test_only_candidates_within_reach_are_scored() -> None:
    rng = np.random.default_rng(1)
    keys, queries = unit(rng, 3000, 32), unit(rng, 100, 32)
    counts = FaissScan(Keys(keys, norms(keys)), 1).top(queries, 10).counts
    assert 1000 <= counts.rescored < 1050
    assert counts.fallbacks == 0


@pytest.mark.slow
def test_a_million_random_queries_equal_the_oracle() -> None:
    rng = np.random.default_rng(9)
    asked, turn = 0, 0
    while asked < 1_000_000:
        count, width = int(rng.integers(1, 130)), int(rng.integers(1, 24))
        keys = make_keys(KINDS[turn % len(KINDS)], rng, count, width)
        queries = unit(rng, 5_000, width)
        k = int(rng.integers(1, min(count, 10) + 1))
        found = FaissScan(Keys(keys, norms(keys)), 1).top(queries, k)
        scores, ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(found.rows, ids)
        np.testing.assert_array_equal(found.scores, scores)
        asked, turn = asked + len(queries), turn + 1
