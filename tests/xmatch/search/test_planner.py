from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.search.planner import (
    MEMORY_SHARE,
    BankShape,
    bank_bytes,
    plan_layout,
    search_flop,
    shard_rows,
)


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_shards_cut_the_bank_without_gap_or_overlap(keys: int, shards: int) -> None:
    edges = shard_rows(keys, shards)
    assert [row for start, stop in edges for row in range(start, stop)] == list(range(keys))
    sizes = [stop - start for start, stop in edges]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 10**7), st.integers(1, 1024), st.floats(1e6, 1e11))
def test_a_layout_fits_the_memory_it_was_given(keys: int, width: int, memory: float) -> None:
    shape = BankShape(keys, width, 4)
    layout = plan_layout(shape, "torch", memory)
    if layout.shards < keys:
        assert layout.bytes_per_actor <= MEMORY_SHARE * memory + 1
    if layout.shards > 1:  # one fewer would not fit
        assert bank_bytes(shape, "torch") / (layout.shards - 1) > MEMORY_SHARE * memory
    assert layout.shards * layout.bytes_per_actor >= bank_bytes(shape, "torch")


def test_a_bank_that_fits_stays_with_the_encoder() -> None:
    small = plan_layout(BankShape(50_000, 512, 4), "native", 8e9)
    assert not small.has_search_actors
    assert small.bytes_per_actor == 50_000 * 512 * 6
    assert "next to its encoder" in str(small)
    large = plan_layout(BankShape(9_000_000, 512, 2), "native", 8e9)
    assert (large.shards, large.has_search_actors) == (4, True)
    assert plan_layout(BankShape(10, 4, 4), "torch", 8e9, replicas=2).has_search_actors


@pytest.mark.parametrize(("shards", "replicas"), [(0, 1), (11, 1), (1, 0)])
def test_a_layout_that_cannot_be_is_refused(shards: int, replicas: int) -> None:
    with pytest.raises(InputError, match=f"got {shards} shards and {replicas} replicas"):
        plan_layout(BankShape(10, 4, 4), "torch", 1e9, shards=shards, replicas=replicas)


def test_work_grows_with_queries_and_keys() -> None:
    assert search_flop(10, BankShape(100, 8, 4)) == 2 * 10 * 100 * 8
