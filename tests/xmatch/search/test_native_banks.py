"""Packed banks of the native extension: kept, restored, refused; and keys of sixteen bits."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.search.exact import Keys
from xmatch.search.native_backend import Kind, NativeScan, instruction_sets
from xmatch.search.scores import norms

native = pytest.importorskip("_vokenray_search")
ml_dtypes = pytest.importorskip("ml_dtypes")
BANK_KINDS = ("int8", "bf16", "split")


class Folder:
    """Packed banks as files of one folder, tiles mapped behind a header of whole pages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, 0

    def load(self, kind: Kind) -> tuple[bytes, npt.NDArray[np.uint8]] | None:
        if not (self.folder / kind).exists():
            return None
        return (self.folder / f"{kind}.header").read_bytes(), np.memmap(self.folder / kind, np.uint8, "r")

    def save(self, kind: Kind, header: bytes, tiles: npt.NDArray[np.uint8]) -> None:
        self.saved += 1
        (self.folder / f"{kind}.header").write_bytes(header)
        tiles.tofile(self.folder / kind)


def scan_of(rows: np.ndarray, kind: Any, packed: Folder | None = None) -> NativeScan:
    return NativeScan(Keys(rows, norms(rows.astype(np.float32))), 1, kind, packed=packed)


def aligned(size: int, shift: int = 0) -> np.ndarray:
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    return memory[start : start + size]


@pytest.mark.parametrize("kind", BANK_KINDS)
def test_a_restored_bank_answers_as_the_packed_one(kind: str) -> None:
    rng = np.random.default_rng(1)
    for count, width in ((1, 1), (31, 7), (32, 64), (100, 130)):
        keys, queries = make_keys("scales", rng, count, width), unit(rng, 40, width)
        bank = native.pack(keys, kind)
        tiles = aligned(len(bank.tiles))
        tiles[:] = bank.tiles
        again = native.restore(bank.header(), tiles)
        assert (again.kind, again.count, again.width) == (bank.kind, bank.count, bank.width) == (kind, count, width)
        assert again.header() == bank.header()
        assert np.shares_memory(np.frombuffer(again.tiles, np.uint8), tiles)  # used in place
        del tiles, bank
        gc.collect()
        found = np.empty((40, 1), np.float32), np.empty((40, 1), np.int64)
        native.search(again, keys, queries, 1, instruction_sets(kind)[-1], *found)
        np.testing.assert_array_equal(found[1], oracle(queries, keys, 1)[1])


def test_tiles_are_read_only_and_outlive_their_bank() -> None:
    bank = native.pack(np.ones((3, 5), np.float32), "int8")
    tiles = bank.tiles
    assert tiles.readonly
    before = bytes(tiles)
    del bank
    gc.collect()
    assert bytes(tiles) == before
    with pytest.raises(TypeError):
        native.Bank()


@pytest.mark.parametrize("kind", BANK_KINDS)
def test_a_header_that_does_not_fit_is_refused(kind: str) -> None:
    bank = native.pack(unit(np.random.default_rng(2), 40, 9), kind)
    header, tiles = bank.header(), aligned(len(bank.tiles))
    native.restore(header, tiles)
    for bad in (b"", header[:50], header[:-1], header + b"\0", b"x" + header[1:], bytes(len(header))):
        with pytest.raises(ValueError, match="header"):
            native.restore(bad, tiles)
    with pytest.raises(ValueError, match="size"):
        native.restore(header, tiles[:-64])
    with pytest.raises(ValueError, match="aligned"):
        native.restore(header, aligned(len(tiles), shift=4))
    rows = np.frombuffer(header[-64 * 4 - 4 * 2 * 4 : -4 * 2 * 4], np.int32)  # before four columns of two blocks
    assert sorted(rows[:40]) == list(range(40)) and set(rows[40:]) == {-1}
    for place, row in ((0, 40), (0, -1), (0, -2), (1, rows[0]), (63, 5)):
        wrong = rows.copy()
        wrong[place] = row
        with pytest.raises(ValueError, match="every row once"):
            native.restore(header.replace(rows.tobytes(), wrong.tobytes()), tiles)
    with pytest.raises(ValueError, match="not finite"):
        native.restore(header[:-4] + np.float32(np.nan).tobytes(), tiles)


@pytest.mark.parametrize("kind", BANK_KINDS)
def test_a_damaged_header_is_refused_or_harmless(kind: str) -> None:
    rng = np.random.default_rng(3)
    keys, queries = unit(rng, 40, 9), unit(rng, 33, 9)
    bank = native.pack(keys, kind)
    tiles = aligned(len(bank.tiles))
    tiles[:] = bank.tiles
    out = np.empty((33, 5), np.float32), np.empty((33, 5), np.int64)
    for _ in range(300):
        damaged = bytearray(bank.header())
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        try:
            wrong = native.restore(bytes(damaged), tiles)
            native.search(wrong, keys, queries, 1, "portable", *out)  # what it says is worthless, but it ends
        except (ValueError, RuntimeError):
            continue
        assert out[1].min() >= 0 and out[1].max() < 40


def test_a_scan_keeps_its_banks_and_finds_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    keys, queries, folder = unit(rng, 100, 20), unit(rng, 50, 20), Folder(tmp_path)
    expected = scan_of(keys, "bf16").top(queries, 3)
    assert np.array_equal(scan_of(keys, "bf16", folder).top(queries, 3).rows, expected.rows)
    assert folder.saved == 1
    again = scan_of(keys, "bf16", folder)
    monkeypatch.setattr(again, "_packed_anew", lambda kind: pytest.fail("packed although it was kept"))
    found = again.top(queries, 3)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_bank_of_other_keys_or_of_another_layout_is_packed_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    folder = Folder(tmp_path)
    scan_of(unit(rng, 90, 20), "int8", folder).top(unit(rng, 5, 20), 3)
    keys, queries = unit(rng, 100, 20), unit(rng, 50, 20)
    expected = oracle(queries, keys, 3)[1]
    np.testing.assert_array_equal(scan_of(keys, "int8", folder).top(queries, 3).rows, expected)
    (tmp_path / "int8.header").write_bytes(b"of an earlier release")
    np.testing.assert_array_equal(scan_of(keys, "int8", folder).top(queries, 3).rows, expected)
    assert folder.saved == 3


@pytest.mark.parametrize("kind", BANK_KINDS)
@pytest.mark.parametrize("number", [np.float16, ml_dtypes.bfloat16])
def test_keys_of_sixteen_bits_are_searched_as_what_they_stand_for(kind: str, number: Any) -> None:
    rng = np.random.default_rng(6)
    for turn, bank_kind in enumerate(k for k in KINDS if k not in ("huge", "scales", "tiny")):
        keys = make_keys(bank_kind, rng, 150, 1 + 13 * turn).astype(number)
        queries = unit(rng, 40, keys.shape[1])
        found = scan_of(keys, kind).top(queries, 6)
        scores, rows = oracle(queries, keys.astype(np.float32), 6)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("bits", [np.float16, ml_dtypes.bfloat16])
def test_every_finite_number_of_sixteen_bits_is_read_as_it_is(bits: Any) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(bits)
    every = every[np.isfinite(every.astype(np.float32))]
    if bits is ml_dtypes.bfloat16:
        every = every[np.abs(every.astype(np.float32)) < 2.0**126]
    query, k = np.ones((1, 1), np.float32), 7
    keys = every[:, None]
    found = scan_of(keys, "bf16").top(query, k)
    scores, rows = oracle(query, keys.astype(np.float32), k)
    np.testing.assert_array_equal(found.rows, rows)
    one_by_one = [scan_of(keys[i : i + 1], "int8").top(query, 1).scores[0, 0] for i in range(0, len(keys), 97)]
    np.testing.assert_array_equal(one_by_one, keys[::97, 0].astype(np.float32) + np.float32(0))


def test_a_thread_that_flushes_subnormals_gets_the_same_answer() -> None:
    rng = np.random.default_rng(7)
    keys = (unit(rng, 60, 10) * np.float32(1e-39)).astype(np.float32)
    queries = unit(rng, 40, 10)
    scores, rows = oracle(queries, keys, 5)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        out = np.empty((40, 5), np.float32), np.empty((40, 5), np.int64)
        native.search(native.pack(keys, "bf16"), keys, queries, 1, instruction_sets("bf16")[-1], *out)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(out[1], rows)
    np.testing.assert_array_equal(out[0], scores)
