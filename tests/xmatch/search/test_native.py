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
WAYS = [(kind, name) for kind in ("int8", "bf16", "split") for name in native_backend.instruction_sets(kind)]


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


@pytest.mark.parametrize(("kind", "instructions"), WAYS)
def test_the_bound_covers_sums_that_lose_all_small_terms(kind: str, instructions: str) -> None:
    """Two keys of equal score: where large terms come first, each small one is less than half a step of the sum."""
    large, small = np.ones(2048, np.float32), np.full(2048, 127 / 128 * 2.0**-13, np.float32)
    key, other = np.concatenate([large, small]), np.concatenate([small, large])
    keys = np.stack([key, -key, other, -other])  # their mean is zero, and rounding loses nothing
    scores, ids, _ = search(keys, np.ones((1, 4096), np.float32), 1, kind, instructions)
    assert ids.tolist() == [[0]]
    assert scores[0, 0] == np.float32(2048 + 2048 * float(small[0]))


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


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"int8": 1.0, "sample": 2.0}, "int8"),  # products in bf16 alone would take longer
        ({"int8": 1.0, "sample": 0.5, "bf16": 1.5}, "int8"),
        ({"int8": 1.0, "sample": 0.5, "bf16": 0.6}, "bf16"),
        ({"int8": 1.0, "sample": 0.1, "bf16": 0.9, "split": 0.4}, "split"),
        ({"int8": 1.0, "sample": 0.2, "bf16": 0.9, "split": 0.95}, "bf16"),
    ],
)
def test_the_first_batch_of_some_size_decides_the_kind(
    seconds: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    keys, queries = unit(rng, 300, 16), unit(rng, 50, 16)
    tried = []

    def timed(self: NativeScan, bank: object, rows: np.ndarray, queries: np.ndarray, k: int, kind: str) -> float:
        tried.append("sample" if k == 1 else kind)
        return seconds[tried[-1]]

    monkeypatch.setattr(NativeScan, "_seconds", timed)
    scan = NativeScan(Keys(keys, norms(keys)), 1)
    scan.top(queries[:5], 2)
    assert scan.kind is None and not tried  # too few queries to tell
    found = scan.top(queries, 2)
    assert scan.kind == expected and set(tried) == set(seconds)
    np.testing.assert_array_equal(found.rows, oracle(queries, keys, 2)[1])


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
    with pytest.raises(ValueError, match="int8, bf16 or split"):
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


def test_instructions_that_never_ran_are_tried_in_a_child_first(monkeypatch, caplog) -> None:
    assert native_backend.works("portable")
    assert not native_backend.works("amx_of_tomorrow")
    assert "amx_of_tomorrow kernels do not work here" in caplog.text
    fastest = native_backend.instruction_sets("int8")[-1]
    monkeypatch.setattr(native_backend, "UNPROVEN", frozenset({fastest}))
    assert native_backend.instruction_sets("int8")[-1] == fastest
    monkeypatch.setattr(native_backend, "works", lambda name: False)
    assert fastest not in native_backend.instruction_sets("int8")


def test_a_crash_of_the_child_is_only_a_no(monkeypatch) -> None:
    monkeypatch.setattr(native_backend, "TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert not native_backend.works("portable_that_crashes")
