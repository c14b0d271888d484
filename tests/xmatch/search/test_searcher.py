from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.search import build_searcher
from xmatch.search.exact import exact_scores
from xmatch.search.faiss_backend import one_faiss

BACKENDS = ("faiss", "torch")


def oracle(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every score in double precision, rounded, sorted in full."""
    scores = exact_scores(queries, np.broadcast_to(keys, (len(queries), *keys.shape)))
    order = np.lexsort((np.broadcast_to(np.arange(len(keys)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 80),
    width=st.integers(1, 33),
    k=st.integers(1, 12),
    kind=st.sampled_from(["random", "duplicates", "near", "zeros", "large"]),
)
def test_every_backend_equals_a_full_sort(seed: int, count: int, width: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    keys = unit(rng, count, width)
    if kind == "duplicates":
        keys = keys[rng.integers(0, max(1, count // 8), count)]
    elif kind == "near":
        keys = (keys[:1] + 1e-7 * rng.standard_normal((count, width))).astype(np.float32)
    elif kind == "zeros":
        keys[::2] = 0
    elif kind == "large":
        keys *= np.float32(1e4) * rng.random((count, 1)).astype(np.float32)
    queries = unit(rng, 5, width)
    scores, ids = oracle(queries, keys, k)
    depth = min(k, count)
    for backend in BACKENDS:
        found = build_searcher(keys, backend).search(queries, k)
        np.testing.assert_array_equal(found.ids[:, :depth], ids[:, :depth])
        np.testing.assert_array_equal(found.scores[:, :depth], scores[:, :depth])
        assert (found.ids[:, depth:] == -1).all()
        assert np.isneginf(found.scores[:, depth:]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_ties_than_candidates_fall_back_and_stay_exact(backend: str) -> None:
    rng = np.random.default_rng(0)
    keys = np.repeat(unit(rng, 3, 8), 700, axis=0)
    searcher = build_searcher(keys, backend)
    found = searcher.search(unit(rng, 4, 8), 5)
    assert (found.ids % 700 == np.arange(5)).all()
    assert searcher.fallbacks == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_threads_change_nothing(backend: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    keys, queries = unit(rng, 3000, 24), unit(rng, 300, 24)
    whole = build_searcher(keys, "torch").search(queries, 7)
    searcher = build_searcher(keys, backend, threads)
    parts = [searcher.search(queries[i : i + 77], 7) for i in range(0, 300, 77)]
    np.testing.assert_array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([p.scores for p in parts]), whole.scores)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_no_keys_and_no_queries_are_defined(backend: str) -> None:
    empty = build_searcher(np.zeros((0, 4), np.float32), backend).search(np.ones((2, 4), np.float32), 3)
    assert (empty.ids == -1).all()
    none = build_searcher(np.ones((2, 4), np.float32), backend).search(np.zeros((0, 4), np.float32), 3)
    assert none.ids.shape == (0, 3)
    assert (none.ids.dtype, none.scores.dtype) == (np.int64, np.float32)


def test_bad_rows_are_named() -> None:
    keys = np.ones((3, 4), np.float32)
    keys[1, 2] = np.nan
    with pytest.raises(ValueError, match="key 1 holds NaN"):
        build_searcher(keys)
    searcher = build_searcher(np.ones((3, 4), np.float32), "torch")
    with pytest.raises(ValueError, match="query 0 holds"):
        searcher.search(np.full((1, 4), np.inf, np.float32), 1)
    with pytest.raises(ValueError, match=r"\(n, 4\), got shape \(1, 5\)"):
        searcher.search(np.ones((1, 5), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(np.ones((1, 4), np.float32), 0)
    with pytest.raises(ValueError, match="float32 or float16"):
        searcher.search(np.ones((1, 4)), 1)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, faiss, torch"):
        build_searcher(np.ones((1, 2), np.float32), "annoy")


def test_faiss_stays_on_its_blas_path() -> None:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 128000
    build_searcher(np.ones((2, 2), np.float32), "faiss")
    assert faiss.cvar.distance_compute_blas_threshold == 1


def test_two_kinds_of_faiss_are_an_error() -> None:
    one_faiss(["numpy", "faiss-cpu"])
    one_faiss(["faiss-gpu-cuvs"])
    with pytest.raises(InputError, match="faiss-cpu and faiss-gpu-cuvs"):
        one_faiss(["faiss-gpu-cuvs", "faiss-cpu"])
