from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vokenize.pair_counts import PairCounts

PARTS = st.lists(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 6)), max_size=30), max_size=6)


@given(parts=PARTS, most=st.sampled_from([4, 40, 10_000]))
def test_pairs_are_counted_whether_they_fit_in_memory_or_not(parts: list[list[tuple[int, int]]], most: int) -> None:
    with PairCounts(7, most) as counts:
        for part in parts:
            types, images = (np.array([pair[i] for pair in part], np.int64) for i in (0, 1))
            counts.add(types, images)
        blocks = list(counts.blocks())
    found = {
        (t, i): c
        for b in blocks
        for t, i, c in zip(b.types.tolist(), b.images.tolist(), b.counts.tolist(), strict=True)
    }
    assert found == dict(Counter(pair for part in parts for pair in part))
    for number, block in enumerate(blocks):
        assert block.types.tolist() == sorted(block.types.tolist())
        others = [set(b.types.tolist()) for b in blocks[:number]]
        assert not any(set(block.types.tolist()) & types for types in others)


def test_temporary_files_are_removed_even_after_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyError), PairCounts(1000, 10) as counts:
        counts.add(np.arange(50), np.arange(50))
        counts.add(np.arange(50), np.arange(50))
        assert list(tmp_path.iterdir())
        raise KeyError
    assert not list(tmp_path.iterdir())
