from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import key_shards
from xmatch.data.key_banks import KeyBank, open_key_bank
from xmatch.data.key_figures import norm_figures, sampled_norms
from xmatch.data.vectors import DTYPES, make_vectors, write_vectors
from xmatch.errors import InputError


def bank_of(folder: Path, parts: list[np.ndarray]) -> KeyBank:
    for number, rows in enumerate(parts):
        ids = [f"{number}/{row}" for row in range(len(rows))]
        write_vectors(str(folder / f"part-{number}.arrow"), make_vectors(ids, rows))
    return open_key_bank(str(folder))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    block=st.sampled_from([1, 5, 1 << 14]),
)
def test_norms_are_those_of_all_rows(tmp_path_factory, seed, counts, dtype, block) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal((n, 5)) * rng.integers(0, 3, (n, 1))).astype(dtype) for n in counts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_shards, "BLOCK_ROWS", block)
        found = norm_figures(bank_of(tmp_path_factory.mktemp("b"), parts))
    lengths = np.linalg.norm(np.concatenate(parts).astype(np.float64), axis=1)
    there = lengths[lengths > 0] if lengths.any() else np.ones(1)
    np.testing.assert_allclose(found[:3], [there.min(), there.mean(), there.max()], rtol=1e-12)
    assert found.zeros == int((lengths == 0).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_rows_are_told_from_others_in_every_number_format(tmp_path: Path, dtype: np.dtype) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 64))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    unit[3] = 0
    assert norm_figures(bank_of(tmp_path / "unit", [unit.astype(dtype)])).are_unit
    assert sampled_norms(bank_of(tmp_path / "unit", [unit.astype(dtype)])).are_unit
    assert not norm_figures(bank_of(tmp_path / "raw", [rows.astype(dtype)])).are_unit
    assert not sampled_norms(bank_of(tmp_path / "raw", [rows.astype(dtype)])).are_unit


def test_a_sample_reaches_over_many_shards(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [np.full((2, 2), number + 1, np.float32) for number in range(40)])
    found = sampled_norms(bank)
    assert found.least == pytest.approx(2**0.5)
    assert found.greatest >= 30


def test_the_row_that_is_not_finite_is_named_past_the_first_block(tmp_path: Path) -> None:
    rows = np.ones((4, 2), np.float32)
    rows[2, 1] = np.nan
    bank = bank_of(tmp_path, [np.ones((3, 2), np.float32), rows])
    with pytest.raises(InputError, match="row 5, id '1/2'"):
        norm_figures(bank)
