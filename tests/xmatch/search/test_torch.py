"""The torch backend on its own: odd tiles, both types of product, banks in an unkind order, and its manners."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.search import build_searcher, torch_backend, torch_scan
from xmatch.search.exact import Keys
from xmatch.search.scores import norms
from xmatch.search.torch_backend import TorchScan

TYPES = (torch.bfloat16, torch.float32)


@contextmanager
def small_tiles(tile_keys: int = 64, tile_scores: int = 1 << 12) -> Iterator[None]:
    """Banks of some hundred keys then lie in several tiles, and none is scored in full for being small."""
    with mock.patch.multiple(torch_backend, FEW_KEYS=0, GROUP=64, TILE_KEYS=tile_keys, TILE_SCORES=tile_scores):
        yield


def scan_of(keys: np.ndarray, dtype: torch.dtype | None = None) -> TorchScan:
    return TorchScan(Keys(keys, norms(keys)), 1, dtype=dtype)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 400),
    width=st.integers(1, 60),
    k=st.integers(1, 30),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(TYPES),
    tile_keys=st.sampled_from([64, 128, 1 << 14]),
    few_scores=st.sampled_from([1, 1 << 10, 1 << 15]),
    line_groups=st.sampled_from([1, 8, 48]),
    power=st.integers(-30, 30),
    order=st.sampled_from(["given", "rising", "falling"]),
)
def test_any_tiles_equal_a_full_sort(
    seed: int,
    count: int,
    width: int,
    k: int,
    kind: str,
    dtype: torch.dtype,
    tile_keys: int,
    few_scores: int,
    line_groups: int,
    power: int,
    order: str,
) -> None:
    rng = np.random.default_rng(seed)
    keys = make_keys(kind, rng, count, width)
    queries = unit(rng, 40, width) * np.float32(10.0**power)
    queries[0], queries[1] = 0, keys[0]
    if order != "given":  # so that the first keys of the bank are the worst, or the best
        keys = keys[np.argsort(keys.astype(np.float64) @ queries[2] * (1 if order == "rising" else -1))]
    k = min(k, count)
    with small_tiles(tile_keys), mock.patch.multiple(torch_scan, FEW_SCORES=few_scores, LINE_GROUPS=line_groups):
        found = scan_of(keys, dtype).top(queries, k)
    scores, ids = oracle(queries, keys, k)
    np.testing.assert_array_equal(found.rows, ids)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.counts.queries == 40
    assert found.counts.rescored >= 40 * k


@given(number=st.floats(2.0**-70, 2.0**20), dtype=st.sampled_from(TYPES))
def test_lines_allow_for_the_rounding_of_scores(number: float, dtype: torch.dtype) -> None:
    exact = torch.tensor([number], dtype=torch.float32)
    bits = exact.to(dtype).view(torch_scan.BITS[dtype])
    assert torch_scan._at_least(bits, dtype) <= exact  # this score may have been stored as these bits
    assert torch_scan._rounded_up_to(exact.double(), dtype) <= bits  # and a line at it lets it through
    assert torch_scan._at_least(bits, dtype) > 0.99 * exact
    assert torch_scan._at_least(-bits, dtype) == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_queries_that_the_first_tile_tells_nothing_of_are_scanned_again(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    keys, queries = unit(rng, 640, 16), unit(rng, 30, 16)
    keys[::10] = -queries[0] - 0.01 * keys[::10]  # the whole first of ten tiles lies behind the first query
    with small_tiles():
        scan = scan_of(keys, dtype)
        assert len(scan._bank.rows) == 10
        found = scan.top(queries, 4)
    np.testing.assert_array_equal(found.rows, oracle(queries, keys, 4)[1])
    assert found.counts.fallbacks == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_too_many_candidates_fall_back(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    keys = unit(rng, 300, 8)
    keys[50:] = keys[50]
    queries = np.concatenate([keys[50:51], keys[:3]])
    with small_tiles(), mock.patch.object(torch_scan, "MOST_CANDIDATES", 100):
        found = scan_of(keys, dtype).top(queries, 5)
    assert found.counts.fallbacks == 1
    np.testing.assert_array_equal(found.rows, oracle(queries, keys, 5)[1])


def test_candidates_are_few_where_keys_differ() -> None:
    rng = np.random.default_rng(2)
    found = scan_of(unit(rng, 5000, 64), torch.bfloat16).top(unit(rng, 100, 64), 10)
    assert found.counts.fallbacks == 0
    assert 1000 <= found.counts.candidates < 2500


def test_small_banks_are_scored_in_full_and_fall_back_to_nothing() -> None:
    rng = np.random.default_rng(6)
    for count, k in ((torch_backend.FEW_KEYS, 3), (400, 200)):
        keys, queries = unit(rng, count, 8), unit(rng, 20, 8)
        found = scan_of(keys).top(queries, k)
        np.testing.assert_array_equal(found.rows, oracle(queries, keys, k)[1])
        assert (found.counts.queries, found.counts.fallbacks) == (20, 0)
        assert found.counts.rescored == found.counts.candidates >= 20 * k


def test_settings_of_the_process_are_put_back() -> None:
    def state() -> tuple[object, ...]:
        reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        return torch.get_num_threads(), torch.get_float32_matmul_precision(), reduced

    before = state()
    rng = np.random.default_rng(3)
    keys = unit(rng, 300, 8)
    scan = TorchScan(Keys(keys, norms(keys)), 3)
    seen: list[tuple[object, ...]] = []

    def watched(*args: object) -> object:
        seen.append(state())
        raise RuntimeError

    torch.set_float32_matmul_precision("high")
    try:
        with mock.patch.object(torch_backend, "scan", watched), pytest.raises(RuntimeError):
            scan.top(keys, 2)
        assert seen == [(3, "highest", False)]
        assert state() == (before[0], "high", before[2])
    finally:
        torch.set_float32_matmul_precision(str(before[1]))


def test_threads_of_python_share_a_scan() -> None:
    rng = np.random.default_rng(4)
    keys, queries = unit(rng, 2000, 24), unit(rng, 200, 24)
    scan = scan_of(keys)
    expected = oracle(queries, keys, 5)[1]
    found: list[np.ndarray] = []
    runners = [threading.Thread(target=lambda: found.append(scan.top(queries, 5).rows)) for _ in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert len(found) == 4
    assert all(np.array_equal(expected, rows) for rows in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_answer(kind: str) -> None:
    rng = np.random.default_rng(5)
    keys, queries = make_keys(kind, rng, 20_000, 65), unit(rng, 300, 65)
    for k in (1, 10, 200):
        on_gpu = build_searcher(keys, "torch", device="cuda").search(queries, k)
        on_cpu = build_searcher(keys, "torch").search(queries, k)
        np.testing.assert_array_equal(on_gpu.ids, on_cpu.ids)
        np.testing.assert_array_equal(on_gpu.scores, on_cpu.scores)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_a_million_random_queries_equal_the_oracle(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(9)
    asked, turn = 0, 0
    while asked < 1_000_000:
        count, width = int(rng.integers(1, 130)), int(rng.integers(1, 24))
        keys = make_keys(KINDS[turn % len(KINDS)], rng, count, width)
        queries = unit(rng, 5_000, width)
        k = int(rng.integers(1, min(count, 10) + 1))
        with small_tiles(int(rng.choice([64, 128]))):
            found = scan_of(keys, dtype).top(queries, k)
        scores, ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(found.rows, ids)
        np.testing.assert_array_equal(found.scores, scores)
        asked, turn = asked + len(queries), turn + 1
