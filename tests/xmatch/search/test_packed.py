from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import make_keys, oracle, unit

from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.search import packed
from xmatch.search.exact import Keys
from xmatch.search.native_backend import NativeScan, instruction_sets
from xmatch.search.packed import PackedFiles, packed_files
from xmatch.search.scores import norms

needs_native = pytest.mark.skipif(not instruction_sets("bf16"), reason="the extension is not built")
KEY = "ab" * 32


def some_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


@settings(deadline=None, max_examples=50)
@given(header=st.binary(max_size=9000), count=st.integers(0, 9000), checked=st.sampled_from([1000, 1 << 26]))
def test_what_is_saved_is_loaded_at_whole_pages(tmp_path_factory, header: bytes, count: int, checked: int) -> None:
    kept = PackedFiles(str(tmp_path_factory.mktemp("kept") / "cache"), KEY)
    assert kept.load("int8") is None
    tiles = some_bytes(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "CHECKED_BYTES", checked)
        kept.save("int8", header, tiles)
        found = kept.load("int8")
    assert found is not None
    assert found[0] == header
    np.testing.assert_array_equal(found[1], tiles)
    assert found[1].dtype == np.uint8
    assert not found[1].flags.writeable
    assert count == 0 or found[1].ctypes.data % packed.ALIGNMENT == 0


def test_a_changed_or_missing_byte_anywhere_is_found_out(tmp_path: Path) -> None:
    kept = PackedFiles(str(tmp_path), KEY)
    kept.save("bf16", b"header" * 9, some_bytes(700))
    path = Path(kept.path("bf16"))
    whole = path.read_bytes()
    assert kept.load("bf16") is not None
    # zeros between header and tiles mean nothing and are not looked at
    gap = range(whole.index(b"header" * 9) + 54, packed.ALIGNMENT)
    for place in [*range(0, 420), *range(packed.ALIGNMENT, len(whole), 50), len(whole) - 1]:
        if place in gap:
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert kept.load("bf16") is None, place
    for length in (0, 1, 15, 16, 300, packed.ALIGNMENT, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert kept.load("bf16") is None, length
    path.write_bytes(whole + b"\0")
    assert kept.load("bf16") is None
    kept.save("bf16", b"new", some_bytes(5))
    assert kept.load("bf16") is not None


def test_a_file_of_other_keys_is_never_used(tmp_path: Path) -> None:
    kept = PackedFiles(str(tmp_path), KEY)
    kept.save("int8", b"h", some_bytes(9))
    others = [
        (PackedFiles(str(tmp_path), "cd" * 32), "int8"),
        (PackedFiles(str(tmp_path), KEY[:40] + "0" * 24), "int8"),  # alike as far as the name of the file goes
        (kept.variant("rows0-5"), "int8"),
        (kept, "bf16"),
    ]
    for other, kind in others:
        assert other.load(kind) is None
        Path(other.path(kind)).write_bytes(Path(kept.path("int8")).read_bytes())
        assert other.load(kind) is None
    assert kept.load("int8") is not None


def test_without_a_folder_nothing_is_kept(tmp_path: Path, caplog) -> None:
    PackedFiles("", KEY).save("int8", b"h", some_bytes(9))
    assert PackedFiles("", KEY).load("int8") is None
    assert not caplog.text
    (tmp_path / "cache").write_text("in the way")  # stands for a folder that cannot be written
    blocked = PackedFiles(str(tmp_path / "cache"), KEY)
    caplog.set_level(logging.WARNING)
    blocked.save("int8", b"h", some_bytes(9))
    assert blocked.load("int8") is None
    assert [record.message.split(":")[0] for record in caplog.records] == [f"nothing is kept in {tmp_path / 'cache'}"]


def bank_of(folder: Path, rows: np.ndarray) -> str:
    write_vectors(str(folder / "a.arrow"), make_vectors([f"s/{row}" for row in range(len(rows))], rows))
    return str(folder)


def test_a_bank_tells_where_its_packed_forms_are(tmp_path: Path, caplog) -> None:
    path = bank_of(tmp_path / "b", unit(np.random.default_rng(0), 5, 4))
    kept = packed_files(open_key_bank(path))
    assert kept is not None
    assert kept.folder == str(tmp_path / "b" / "cache")
    assert kept.key == open_key_bank(path).hash
    assert not caplog.text
    assert packed_files(open_key_bank(f"file://{path}")) is None
    assert "packed in memory" in caplog.text
    named = packed_files(open_key_bank(f"file://{path}", cache=str(tmp_path / "caches")))
    assert named is not None
    assert Path(named.folder).parent == tmp_path / "caches"


class Noting(PackedFiles):
    """Remembers what it was asked to keep."""

    def __init__(self, kept: PackedFiles) -> None:
        super().__init__(kept.folder, kept.key, kept.of)
        self.saved: list[str] = []

    def save(self, kind: str, header: bytes, tiles: np.ndarray) -> None:
        self.saved.append(kind)
        super().save(kind, header, tiles)


@needs_native
@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_bank_is_packed_once_and_answers_the_same(tmp_path: Path, kind, dtype) -> None:
    rng = np.random.default_rng(1)
    path = bank_of(tmp_path, make_keys("duplicates", rng, 300, 40).astype(dtype))
    queries = unit(rng, 40, 40)
    rows = open_key_bank(path).rows
    scores, ids = oracle(queries, rows.astype(np.float32), 6)
    contents = set()
    for start in ("fresh", "kept", "damaged"):
        of_bank = packed_files(open_key_bank(path))
        assert of_bank is not None
        kept = Noting(of_bank)
        file = Path(kept.path(kind))
        if start == "damaged":
            content = bytearray(file.read_bytes())
            content[-7] ^= 64
            file.write_bytes(content)
        found = NativeScan(Keys(rows, norms(rows)), 1, kind, packed=kept).top(queries, 6)
        np.testing.assert_array_equal(found.rows, ids)
        np.testing.assert_array_equal(found.scores, scores)
        assert kept.saved == ([] if start == "kept" else [kind])
        contents.add(file.read_bytes())
    assert len(contents) == 1  # packing is deterministic


def pack_here(path: str, gate) -> None:
    bank = open_key_bank(path)
    gate.wait()
    for kind in ("int8", "bf16"):
        NativeScan(Keys(bank.rows, norms(bank.rows)), 1, kind, packed=packed_files(bank))._bank(kind)


@needs_native
@pytest.mark.slow
def test_processes_that_pack_at_once_leave_whole_equal_files(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(2), 20_000, 64)
    path = bank_of(tmp_path, rows)
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    workers = [context.Process(target=pack_here, args=(path, gate)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    kept = packed_files(open_key_bank(path))
    assert kept is not None
    before = {kind: Path(kept.path(kind)).read_bytes() for kind in ("int8", "bf16")}
    assert not [name for name in os.listdir(kept.folder) if files.TEMPORARY_MARK in name]
    for kind, content in before.items():
        assert kept.load(kind) is not None
        os.unlink(kept.path(kind))
        NativeScan(Keys(rows, norms(rows)), 1, kind, packed=kept)._bank(kind)
        assert Path(kept.path(kind)).read_bytes() == content
