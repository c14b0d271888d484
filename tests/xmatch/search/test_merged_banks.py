from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import unit

from xmatch.data import key_shards
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, matrix, write_vectors
from xmatch.search import merged_banks
from xmatch.search.merged_banks import alias_table, kept_tables


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), size=st.integers(1, 9), block=st.sampled_from([1, 1000]))
def test_kept_rows_and_aliases_are_all_rows(tmp_path_factory, seed: int, count: int, size: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, count)
    labels = np.minimum(labels, np.arange(count))
    while not np.array_equal(labels[labels], labels):
        labels = labels[labels]
    rows = unit(rng, count, 4)
    rows[labels == 0] = 0
    path = str(tmp_path_factory.mktemp("b") / "a.arrow")
    write_vectors(path, make_vectors([f"s/{row}" for row in range(count)], rows))
    bank = open_key_bank(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged_banks, "BLOCK_ROWS", block)
        tables, aliases = list(kept_tables(bank, labels, size)), alias_table(bank, labels).to_pylist()
    assert all(len(table) == size for table in tables[:-1])
    kept = [name for table in tables for name in table.column("id").to_pylist()]
    assert sorted(kept + [alias["id"] for alias in aliases]) == sorted(bank.ids.to_pylist())
    numbers = [int(name[2:]) for name in kept]
    assert numbers == sorted(numbers) == np.flatnonzero(labels == np.arange(count)).tolist()
    np.testing.assert_array_equal(np.concatenate([matrix(table) for table in tables]), rows[numbers])
    for alias in aliases:
        row, other = int(alias["id"][2:]), int(alias["stands_for"][2:])
        assert labels[row] == other
        expected = 1.0 if other == 0 else float(rows[row].astype(np.float64) @ rows[other])
        assert alias["similarity"] == pytest.approx(expected, abs=1e-6)


def test_a_new_bank_keeps_its_number_format_and_columns(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(0), 3, 4).astype(np.float16)
    write_vectors(str(tmp_path / "a.arrow"), make_vectors(["a", "b", "c"], rows, groups=["g", None, "h"]))
    [table] = kept_tables(open_key_bank(str(tmp_path / "a.arrow")), np.array([0, 0, 2]), 10)
    assert table.column_names == ["id", "group", "vector", "box", "uri"]
    assert matrix(table).dtype == np.float16
    assert table.column("group").to_pylist() == ["g", "h"]
    assert key_shards.vector_table(table.drop_columns("vector"), rows[:2]).schema == table.schema
