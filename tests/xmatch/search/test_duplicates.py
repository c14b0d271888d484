from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import oracle, unit

from xmatch.search import build_searcher, duplicates, merge_results, searcher
from xmatch.search.duplicates import MergedScan, find_duplicates, merged_scan, row_hashes
from xmatch.search.exact import Found, Keys, SearchCounts
from xmatch.search.native_backend import instruction_sets
from xmatch.search.packed import PackedFiles
from xmatch.search.scores import norms
from xmatch.search.searcher import BACKENDS

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def by_definition(rows: np.ndarray) -> dict[bytes, list[int]]:
    kinds: dict[bytes, list[int]] = {}
    for row, values in enumerate(rows.astype(np.float64) + 0.0):
        kinds.setdefault(values.tobytes(), []).append(row)
    return kinds


def check(rows: np.ndarray) -> None:
    found, kinds = find_duplicates(rows), by_definition(rows)
    assert found.representatives.tolist() == [members[0] for members in kinds.values()]
    lists = [found.members[a:b].tolist() for a, b in zip(found.starts[:-1], found.starts[1:])]
    assert lists == list(kinds.values())
    assert found.sizes.tolist() == [len(members) for members in kinds.values()]
    assert found.copies == len(rows) - len(kinds)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 60),
    width=st.integers(0, 9),
    values=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    block=st.sampled_from([1, 100, 1 << 24]),
)
def test_equal_rows_are_found_and_no_others(seed, count, width, values, dtype, block) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.integers(-values, values + 1, (count, width)) * rng.choice([-0.0, 1.0], (count, 1))).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK_BYTES", block)
        check(rows)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), hashes=st.integers(1, 4))
def test_rows_of_one_hash_are_told_apart(seed: int, hashes: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (50, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "row_hashes", lambda rows: row_hashes(rows) % np.uint64(hashes))
        check(rows)


def test_hashes_follow_values_not_bits_of_zero_and_differ_otherwise() -> None:
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        for width in (1, 2, 3, 4, 5, 64):
            rows = rng.standard_normal((500, width)).astype(dtype)
            rows[:, 0] = np.arange(500)
            rows[0] = 0
            negative = rows.copy()
            negative[0] = -0.0
            assert np.signbit(negative[0]).all()
            np.testing.assert_array_equal(row_hashes(rows), row_hashes(negative))
            assert len(np.unique(row_hashes(rows))) == len(np.unique(rows.astype(np.float64), axis=0))
    swapped = np.array([[1, 2], [2, 1], [3, 0], [0, 3]], np.float32)
    assert len(np.unique(row_hashes(swapped))) == 4


def test_strided_and_readonly_rows_are_taken() -> None:
    wide = np.zeros((40, 9), np.float32)
    wide[::2, 1::3] = np.random.default_rng(0).integers(0, 2, (20, 3))
    wide.flags.writeable = False
    check(wide[::2, 1::3])
    check(np.asfortranarray(wide[::2, 1::3]))


def with_copies(rng: np.random.Generator, count: int, width: int, kinds: int) -> np.ndarray:
    """Rows of few kinds, many of them with equal scores, zero and -0 among them."""
    few = rng.integers(-1, 2, (kinds, width)).astype(np.float32)
    rows = few[rng.integers(0, kinds, count)]
    rows[rng.random(count) < 0.1] = -0.0
    rows[rng.random(count) < 0.1] = 0.0
    return rows


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 80),
    width=st.integers(1, 6),
    kinds=st.integers(1, 40),
    k=st.integers(1, 90),
    room=st.sampled_from([1, 50, 1 << 22]),
    backend=st.sampled_from(["faiss", "torch", *(["native"] if instruction_sets("bf16") else [])]),
)
def test_a_merged_scan_answers_as_one_over_all_keys(seed, count, width, kinds, k, room, backend) -> None:
    rng = np.random.default_rng(seed)
    rows, depth = with_copies(rng, count, width, kinds), min(k, count)
    queries = np.concatenate([rng.integers(-1, 2, (4, width)).astype(np.float32), unit(rng, 2, width)])
    found_twice = find_duplicates(rows)
    distinct = rows[found_twice.representatives]
    scan = MergedScan(BACKENDS[backend](Keys(distinct, norms(distinct)), 1), found_twice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "EXPANDED_ROWS", room)
        found = scan.top(queries, depth)
    scores, ids = oracle(queries, rows, depth)
    np.testing.assert_array_equal(found.rows, ids)
    np.testing.assert_array_equal(found.scores, scores)
    assert not np.signbit(found.scores[found.scores == 0]).any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 80), k=st.integers(1, 90), has_groups=st.booleans())
def test_groups_shards_and_first_ids_are_as_without_merging(seed: int, count: int, k: int, has_groups: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, queries = with_copies(rng, count, 4, 12), rng.integers(-1, 2, (5, 4)).astype(np.float32)
    groups = rng.integers(0, 20, count) if has_groups else None
    first = 0 if has_groups else 2**31 + 5
    plain = build_searcher(rows, "torch", groups=groups, first_id=first).search(queries, k)
    with pytest.MonkeyPatch.context() as patch:
        torch = BACKENDS["torch"]
        merged = {**BACKENDS, "torch": lambda keys, threads: merged_scan(keys, lambda some, _: torch(some, threads))}
        patch.setattr(searcher, "BACKENDS", merged)
        patch.setattr(duplicates, "LEAST_SAVED", 0.0)
        found = build_searcher(rows, "torch", groups=groups, first_id=first).search(queries, k)
        cut = count // 2
        halves = [
            build_searcher(rows[a:b], "torch", groups=groups[a:b] if has_groups else None, first_id=first and first + a)
            for a, b in ((0, cut), (cut, count))
        ]
        joined = merge_results([half.search(queries, k) for half in halves], k)
    for result in (found, joined):
        np.testing.assert_array_equal(result.ids, plain.ids)
        np.testing.assert_array_equal(result.scores, plain.scores)


class Noting:
    """A scan that only remembers what it was given."""

    def __init__(self, keys: Keys, packed: PackedFiles | None) -> None:
        self.keys, self.packed = keys, packed

    def top(self, queries: np.ndarray, k: int) -> Found:
        shape = (len(queries), k)
        rows = np.broadcast_to(np.arange(k), shape)
        return Found(np.zeros(shape, np.float32), rows, SearchCounts(len(queries)))


def test_without_copies_nothing_stands_between_the_scan_and_its_caller() -> None:
    keys = unit(np.random.default_rng(0), 100, 8)
    packed = PackedFiles("kept", "00" * 32)
    scan = merged_scan(Keys(keys, norms(keys)), Noting, packed)
    assert isinstance(scan, Noting)
    assert scan.keys.rows is keys
    assert scan.packed is packed


def test_few_copies_are_left_in_and_many_are_taken_out() -> None:
    keys = unit(np.random.default_rng(0), 10_000, 3)
    keys[-400:-200] = keys[:200]
    assert isinstance(merged_scan(Keys(keys, norms(keys)), Noting), Noting)
    keys[-300:] = keys[5]  # 3 % of the rows, but all of one kind
    scan = merged_scan(Keys(keys, norms(keys)), Noting)
    assert isinstance(scan, MergedScan)
    assert scan.top(np.zeros((1, 3), np.float32), 6).rows.tolist() == [[0, 1, 2, 3, 4, 5]]
    many = np.repeat(unit(np.random.default_rng(1), 50, 3), 2, axis=0)
    built: list[Noting] = []

    def build(keys: Keys, packed: PackedFiles | None) -> Noting:
        built.append(Noting(keys, packed))
        return built[-1]

    merged_scan(Keys(many, norms(many)), build, PackedFiles("kept", "00" * 32))
    np.testing.assert_array_equal(built[0].keys.rows, many[::2])
    np.testing.assert_array_equal(built[0].keys.norms, norms(many[::2]))
    assert built[0].packed is not None
    assert built[0].packed.path("int8") == f"kept/packed-{'0' * 32}-all_distinct-int8.bin"


def test_a_memory_mapped_bank_is_searched_as_it_lies(tmp_path) -> None:
    rows = with_copies(np.random.default_rng(3), 300, 5, 20)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    check(mapped)
    check(mapped[37:211])
