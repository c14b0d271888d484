from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.errors import InputError
from xmatch.search import SearchCounts, build_searcher, merge_results, native_backend, searcher
from xmatch.search.exact import Keys
from xmatch.search.faiss_backend import one_faiss
from xmatch.search.scores import norms
from xmatch.search.torch_backend import TorchScan

HAS_NATIVE = bool(native_backend.instruction_sets("bf16"))
BACKENDS = ("faiss", "torch", "native") if HAS_NATIVE else ("faiss", "torch")


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 150),
    width=st.integers(1, 70),
    k=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
)
def test_every_backend_equals_a_full_sort(seed: int, count: int, width: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    keys = make_keys(kind, rng, count, width)
    queries = unit(rng, 20, width)
    queries[-1] = 0
    queries[:3] = keys[rng.integers(0, count, 3)]
    scores, ids = oracle(queries, keys, k)
    depth = min(k, count)
    for backend in BACKENDS:
        found = build_searcher(keys, backend).search(queries, k)
        np.testing.assert_array_equal(found.ids[:, :depth], ids, err_msg=backend)
        np.testing.assert_array_equal(found.scores[:, :depth], scores, err_msg=backend)
        assert not np.signbit(found.scores[found.scores == 0]).any()
        assert (found.ids[:, depth:] == -1).all()
        assert np.isneginf(found.scores[:, depth:]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torch_certifies_either_precision(kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(10)
    for count, width, k in ((700, 33, 10), (65, 8, 1)):
        keys, queries = make_keys(kind, rng, count, width), unit(rng, 30, width)
        found = TorchScan(Keys(keys, norms(keys)), 1, dtype=dtype).top(queries, k)
        scores, ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(found.rows, ids)
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_ties_than_candidates_stay_exact(backend: str) -> None:
    rng = np.random.default_rng(0)
    keys = np.repeat(unit(rng, 3, 8), 700, axis=0)
    found = build_searcher(keys, backend).search(unit(rng, 4, 8), 5)
    assert (found.ids % 700 == np.arange(5)).all()


def test_fallbacks_are_counted() -> None:
    rng = np.random.default_rng(0)
    keys = np.repeat(unit(rng, 3, 8), 700, axis=0)
    keys[:, -1] = 1e-10 * np.arange(len(keys), dtype=np.float32)  # all different, but by less than float32 sums show
    searcher = build_searcher(keys, "faiss")
    searcher.search(unit(rng, 4, 8), 5)
    assert searcher.fallbacks == 4
    assert searcher.counts.queries == 4
    for backend in BACKENDS:
        large = np.full((300, 2), 1e38, np.float32) * np.linspace(1, 0.9, 300, dtype=np.float32)[:, None]
        huge = build_searcher(large, backend)
        assert huge.search(np.full((2, 2), 1e38, np.float32), 2).ids.tolist() == [[0, 1], [0, 1]]
        assert huge.counts.fallbacks == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_and_threads_change_nothing(backend: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    keys, queries = unit(rng, 3000, 24), unit(rng, 300, 24)
    whole = build_searcher(keys, "torch").search(queries, 7)
    searcher = build_searcher(keys, backend, threads)
    parts = [searcher.search(queries[i : i + 77], 7) for i in range(0, 300, 77)]
    np.testing.assert_array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([p.scores for p in parts]), whole.scores)
    assert searcher.counts.queries == 300
    assert searcher.counts.rescored <= searcher.counts.candidates


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 7])
def test_shards_change_nothing(backend: str, shards: int) -> None:
    rng = np.random.default_rng(2)
    keys, queries = make_keys("duplicates", rng, 500, 16), unit(rng, 40, 16)
    first = 2**31 - 100
    whole = build_searcher(keys, backend, first_id=first).search(queries, 9)
    cuts = np.linspace(0, 500, shards + 1).astype(int)
    parts = [
        build_searcher(keys[a:b], backend, first_id=first + int(a)).search(queries, 9)
        for a, b in zip(cuts[:-1], cuts[1:])
    ]
    merged = merge_results(parts[::-1], 9)
    np.testing.assert_array_equal(merged.ids, whole.ids)
    np.testing.assert_array_equal(merged.scores, whole.scores)
    assert whole.ids.max() > 2**31


def test_the_order_of_keys_only_renames_them() -> None:
    rng = np.random.default_rng(3)
    keys, queries, order = unit(rng, 400, 12), unit(rng, 30, 12), rng.permutation(400)
    for backend in BACKENDS:
        straight, mixed = build_searcher(keys, backend), build_searcher(keys[order], backend)
        np.testing.assert_array_equal(straight.search(queries, 5).ids, order[mixed.search(queries, 5).ids])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 90), kinds=st.integers(1, 30), k=st.integers(1, 8))
def test_groups_are_ranked_by_their_best_key(seed: int, count: int, kinds: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-1, 2, (count, 6)).astype(np.float32)  # many ties
    groups = rng.integers(0, kinds, count) * 3
    queries = rng.integers(-1, 2, (6, 6)).astype(np.float32)
    scores = queries @ keys.T
    for backend in BACKENDS:
        found = build_searcher(keys, backend, groups=groups).search(queries, k)
        halves = [build_searcher(keys[part::2], backend, groups=groups[part::2]).search(queries, k) for part in (0, 1)]
        np.testing.assert_array_equal(merge_results(halves, k).ids, found.ids)
        for row in range(6):
            best = sorted((-max(scores[row, groups == group]), group) for group in set(groups.tolist()))[:k]
            assert found.ids[row, : len(best)].tolist() == [group for _, group in best]
            assert found.scores[row, : len(best)].tolist() == [-score for score, _ in best]
            assert (found.ids[row, len(best) :] == -1).all()


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_no_keys_no_queries_and_no_width_are_defined(backend: str) -> None:
    empty = build_searcher(np.zeros((0, 4), np.float32), backend).search(np.ones((2, 4), np.float32), 3)
    assert (empty.ids == -1).all()
    none = build_searcher(np.ones((2, 4), np.float32), backend).search(np.zeros((0, 4), np.float32), 3)
    assert none.ids.shape == (0, 3)
    assert (none.ids.dtype, none.scores.dtype) == (np.int64, np.float32)
    flat = build_searcher(np.ones((2, 0), np.float32), backend).search(np.zeros((1, 0), np.float32), 3)
    assert flat.ids.tolist() == [[0, 1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_float16_and_readonly_arrays_are_taken(backend: str) -> None:
    rng = np.random.default_rng(4)
    keys, queries = unit(rng, 90, 10), unit(rng, 8, 10)
    wide = np.zeros((180, 31), np.float32)
    wide[::2, 1::3] = keys[:, :10]
    wide.flags.writeable = False
    strided = build_searcher(wide[::2, 1::3], backend).search(np.asfortranarray(queries), 3)
    np.testing.assert_array_equal(strided.ids, oracle(queries, keys, 3)[1])
    half = keys.astype(np.float16)
    found = build_searcher(half, backend).search(queries, 3)
    np.testing.assert_array_equal(found.ids, oracle(queries, half.astype(np.float32), 3)[1])
    raw = np.frombuffer(b"x" + keys.tobytes(), np.uint8)[1:].view(np.float32).reshape(keys.shape)
    np.testing.assert_array_equal(build_searcher(raw, backend).search(queries, 3).ids, strided.ids)


def test_bad_rows_are_named() -> None:
    keys = np.ones((3, 4), np.float32)
    keys[1, 2] = np.nan
    with pytest.raises(InputError, match="key 1 holds NaN"):
        build_searcher(keys)
    searcher = build_searcher(np.ones((3, 4), np.float32), "torch")
    with pytest.raises(InputError, match="query 0 holds"):
        searcher.search(np.full((1, 4), np.inf, np.float32), 1)
    with pytest.raises(ValueError, match=r"\(n, 4\), got shape \(1, 5\)"):
        searcher.search(np.ones((1, 5), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(np.ones((1, 4), np.float32), 0)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        searcher.search(np.ones((1, 4)), 1)


def test_bad_groups_are_refused() -> None:
    keys = np.ones((3, 4), np.float32)
    for groups in (np.zeros(2, np.int64), np.zeros(3), np.array([0, -1, 2])):
        with pytest.raises(ValueError, match="expected groups"):
            build_searcher(keys, groups=groups)
    with pytest.raises(ValueError, match="first_id must be 0"):
        build_searcher(keys, groups=np.zeros(3, np.int64), first_id=1)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, native, faiss, torch, triton"):
        build_searcher(np.ones((1, 2), np.float32), "annoy")


def test_auto_takes_native_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    is_there = native_backend.is_fast()
    monkeypatch.setattr(searcher, "has_fast_bf16", lambda: False)
    assert searcher.fastest_backend(100, 8) == ("native" if is_there else "faiss")
    monkeypatch.setattr(native_backend, "instruction_sets", lambda kind: ())
    assert build_searcher(np.ones((1, 2), np.float32)).backend == "faiss"
    with pytest.raises(InputError, match="_vokenray_search"):
        build_searcher(np.ones((1, 2), np.float32), "native")
    assert searcher.fastest_backend(10**6, 512, item_bytes=2) == "torch"  # faiss would hold 2 GB of float32
    assert searcher.fastest_backend(10**6, 512, item_bytes=4) == "faiss"
    assert searcher.fastest_backend(1000, 512, item_bytes=2) == "faiss"
    monkeypatch.setattr(searcher, "has_fast_bf16", lambda: True)
    assert searcher.fastest_backend(100, 8) == "torch"


def test_auto_on_a_gpu_takes_triton_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, keys, name in ((True, 100, "triton"), (True, 1 << 30, "torch"), (False, 100, "torch")):
        monkeypatch.setattr(searcher, "has_gpu", lambda has_gpu=has_gpu: has_gpu)
        assert searcher.fastest_backend(keys, 8, device="cuda") == name


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.ones((2, 3), np.float32)
    monkeypatch.setattr(searcher.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(searcher.torch.cuda, "device_count", lambda: 0)
    assert build_searcher(keys, "torch", device="auto").search(keys, 1).ids.tolist() == [[0], [0]]
    with pytest.raises(InputError, match="torch finds 0 CUDA GPUs"):
        build_searcher(keys, "torch", device="cuda:1")
    for device in ("tpu", "cpu:0", "cuda:x"):
        with pytest.raises(ValueError, match="unknown device"):
            build_searcher(keys, device=device)
    monkeypatch.setattr(searcher.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="'native' runs on cpu"):
        build_searcher(keys, "native", device="cuda")


def test_counts_add_up() -> None:
    assert SearchCounts(1, 2, 3, 4, 5).plus(SearchCounts(1, 1, 1, 1, 1)) == SearchCounts(2, 3, 4, 5, 6)


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
