"""Keys in float16 and bfloat16, in memory and in files: searched as they lie."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.errors import InputError
from xmatch.search import build_searcher, native_backend
from xmatch.search.exact import check_rows
from xmatch.search.scores import BLOCK_ELEMENTS, decode, norms

HAS_NATIVE = bool(native_backend.instruction_sets("bf16"))
BACKENDS = ("faiss", "torch", "native") if HAS_NATIVE else ("faiss", "torch")
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 400),
    width=st.integers(1, 40),
    k=st.integers(1, 12),
    kind=st.sampled_from([kind for kind in KINDS if kind != "huge"]),  # float16 would make infinities of them
    dtype=st.sampled_from(HALVES),
)
def test_every_backend_searches_the_stored_values(
    seed: int, count: int, width: int, k: int, kind: str, dtype: np.dtype
) -> None:
    rng = np.random.default_rng(seed)
    keys = make_keys(kind, rng, count, width)
    stored = np.clip(keys, -60_000, 60_000).astype(dtype)
    queries = unit(rng, 10, width).astype(dtype)
    scores, ids = oracle(queries.astype(np.float32), stored.astype(np.float32), k)
    for backend in BACKENDS:
        found = build_searcher(stored, backend).search(queries, k)
        np.testing.assert_array_equal(found.ids[:, : ids.shape[1]], ids, err_msg=backend)
        np.testing.assert_array_equal(found.scores[:, : ids.shape[1]], scores, err_msg=backend)


def test_every_half_is_decoded_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for dtype in HALVES:
        rows = bits.view(dtype)
        np.testing.assert_array_equal(decode(rows), rows.astype(np.float32))
        np.testing.assert_array_equal(decode(rows[::3, ::2]), rows[::3, ::2].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), *HALVES])
def test_a_bank_in_a_file_is_neither_copied_nor_held_as_float32(tmp_path: Path, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    shape = (120_000, 128)
    file = np.memmap(tmp_path / "keys", dtype, "w+", shape=shape)
    file[:] = rng.standard_normal(shape, np.float32).astype(dtype)
    file.flush()
    bank = np.memmap(tmp_path / "keys", dtype, "r", shape=shape)
    tracemalloc.start()  # sees what numpy holds; torch holds the bank in bfloat16 besides
    searcher = build_searcher(bank, "torch")
    found = searcher.search(decode(bank[:20]), 3)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(searcher.keys, bank)
    assert held < 4 * bank.size / 4
    assert searcher._scan._bank.rows.element_size() == 2
    assert found.ids[:, 0].tolist() == list(range(20))


def test_broken_rows_are_named_across_blocks() -> None:
    width = 1024
    rows = np.zeros((3 * BLOCK_ELEMENTS // width, width), np.float16)
    assert check_rows(rows, "key", None) is rows
    first, second = BLOCK_ELEMENTS // width + 7, 2 * BLOCK_ELEMENTS // width + 1
    rows[first, 3], rows[second, 0] = np.inf, np.nan
    with pytest.raises(InputError, match=rf"key {first} holds NaN or infinity \(2 of {len(rows)} do\)"):
        check_rows(rows, "key", None)


def test_norms_are_never_too_small() -> None:
    rng = np.random.default_rng(1)
    for dtype in HALVES:
        rows = rng.standard_normal((50, 37)).astype(dtype)
        true = np.linalg.norm(rows.astype(np.longdouble), axis=1)
        assert (norms(rows) >= true).all()
        np.testing.assert_allclose(norms(rows), true.astype(float), rtol=2e-6)
