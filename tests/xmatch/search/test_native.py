"""The native extension on its own: every instruction set, odd shapes, and what it must refuse."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.search import native_backend
from xmatch.search.exact import Keys
from xmatch.search.native_backend import NativeScan
from xmatch.search.scores import norms

native = pytest.importorskip("_vokenray_search")
WAYS = [(kind, name) for kind in ("int8", "bf16") for name in native_backend.instruction_sets(kind)]


def search(
    keys: np.ndarray, queries: np.ndarray, k: int, kind: str, instructions: str, threads: int = 1
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    counts = native.search(native.pack(keys, kind), keys, queries, threads, instructions, scores, ids)
    return scores, ids, counts


@pytest.mark.parametrize(("kind", "instructions"), WAYS)
def test_odd_shapes_of_every_kind_equal_a_full_sort(kind: str, instructions: str) -> None:
    rng = np.random.default_rng(5)
    for turn in range(60):
        count, width, asked = rng.integers(1, 200), rng.integers(1, 150), rng.integers(0, 70)
        keys = make_keys(KINDS[turn % len(KINDS)], rng, int(count), int(width))
        queries = unit(rng, int(asked), int(width))
        k = int(rng.integers(1, min(count, 40) + 1))
        scores, ids, counts = search(keys, queries, k, kind, instructions, threads=1 + turn % 3)
        true_scores, true_ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(ids, true_ids)
        np.testing.assert_array_equal(scores, true_scores)
        assert counts[1] <= max(counts[0], 0)


@pytest.mark.parametrize(("kind", "instructions"), WAYS)
def test_candidates_beyond_all_room_fall_back(kind: str, instructions: str) -> None:
    keys = np.ones((70_000, 2), np.float32)
    scores, ids, counts = search(keys, np.ones((1, 2), np.float32), 3, kind, instructions)
    assert ids.tolist() == [[0, 1, 2]]
    assert scores.tolist() == [[2, 2, 2]]
    assert counts[3] == 1


def test_several_threads_of_python_share_a_bank() -> None:
    rng = np.random.default_rng(6)
    keys, queries = unit(rng, 500, 33), unit(rng, 100, 33)
    scan = NativeScan(Keys(keys, norms(keys)), 2, "bf16")
    expected = scan.top(queries, 4).rows
    found: list[np.ndarray] = []
    runners = [threading.Thread(target=lambda: found.append(scan.top(queries, 4).rows)) for _ in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert len(found) == 4
    assert all(np.array_equal(expected, rows) for rows in found)


def test_int8_gives_way_to_bf16_where_its_candidates_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    keys = unit(rng, 300, 16)
    scan = NativeScan(Keys(keys, norms(keys)), 1)
    scan.top(unit(rng, 5, 16), 2)
    assert scan.kind is None  # too few queries to tell
    monkeypatch.setattr(native_backend, "RATES", {name: (1e-6, 1.0) for name in native_backend.RATES})
    scan.top(unit(rng, 50, 16), 2)
    assert scan.kind == "bf16"
    monkeypatch.setattr(native_backend, "RESCORE_NS", 0.0)
    monkeypatch.setattr(native_backend, "CANDIDATE_NS", 0.0)
    other = NativeScan(Keys(keys, norms(keys)), 1)
    monkeypatch.setattr(native_backend, "RATES", {name: (2.0, 1.0) for name in native_backend.RATES})
    other.top(unit(rng, 50, 16), 2)
    assert other.kind == "int8"


def test_wide_vectors_are_scanned_as_bf16() -> None:
    rng = np.random.default_rng(8)
    keys = unit(rng, 5, 16_400)
    scan = NativeScan(Keys(keys, norms(keys)), 1)
    assert scan.top(keys, 1).rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert scan.kind == "bf16"
    with pytest.raises(ValueError, match="too wide"):
        native.pack(keys, "int8")


def test_what_does_not_fit_is_refused() -> None:
    keys, queries = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)
    bank = native.pack(keys, "int8")
    scores, ids = np.empty((2, 1), np.float32), np.empty((2, 1), np.int64)
    for bad in (keys.astype(np.float64), keys[:, ::2], keys[0], np.frombuffer(b"x" * 49, np.uint8)[1:]):
        with pytest.raises((ValueError, BufferError)):
            native.pack(bad, "int8")
    for empty in (np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)):
        with pytest.raises(ValueError, match="at least one"):
            native.pack(empty, "int8")
    with pytest.raises(ValueError, match="int8 or bf16"):
        native.pack(keys, "int4")
    good = [bank, keys, queries, 1, "portable", scores, ids]
    for place, value in (
        (1, keys[:2]),
        (2, np.ones((2, 4), np.float32)),
        (3, 0),
        (4, "neon"),
        (5, np.empty((2, 5), np.float32)),
        (6, ids.astype(np.int32)),
        (6, np.empty((2, 9), np.int64)),
    ):
        wrong = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(ValueError):
            native.search(*wrong)
    scores.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        native.search(*good)
    del bank
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "instructions"), WAYS)
def test_a_million_random_queries_equal_the_oracle(kind: str, instructions: str) -> None:
    rng = np.random.default_rng(9)
    left = 1_000_000 if instructions == WAYS[-1][1] else 50_000
    turn = 0
    while left > 0:
        count, width, asked = int(rng.integers(1, 130)), int(rng.integers(1, 24)), 5_000
        keys = make_keys(KINDS[turn % len(KINDS)], rng, count, width)
        queries = unit(rng, asked, width)
        k = int(rng.integers(1, min(count, 10) + 1))
        scores, ids, _ = search(keys, queries, k, kind, instructions)
        true_scores, true_ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(ids, true_ids)
        np.testing.assert_array_equal(scores, true_scores)
        left, turn = left - asked, turn + 1
