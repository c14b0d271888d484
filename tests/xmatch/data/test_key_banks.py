from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import files, key_cache
from xmatch.data.key_banks import check_finite, open_key_bank
from xmatch.data.key_cache import content_hash, prune_cache
from xmatch.data.vectors import BFLOAT16, DTYPES, make_vectors, write_vectors
from xmatch.errors import InputError

FORMS = ("arrow", "batches", "parquet", "lists", "hdf5", "chunked")


def rows_of(count: int, width: int, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


def write_hdf5(path: Path, rows: np.ndarray, ids: list[str], **how) -> None:
    with h5py.File(path, "w") as store:
        is_bfloat16 = rows.dtype == BFLOAT16
        store.create_dataset("keys", data=rows.view(np.uint16) if is_bfloat16 else rows, **how)
        if is_bfloat16:
            store["keys"].attrs["dtype"] = "bfloat16"
    path.with_suffix(".ids").write_text("".join(f"{name}\n" for name in ids))


def write_form(folder: Path, form: str, number: int, rows: np.ndarray) -> list[str]:
    """One file of a bank in some form; the ids that its rows then have."""
    folder.mkdir(exist_ok=True)
    names = [f"{number}-{row}" for row in range(len(rows))]
    table = make_vectors([f"s{number}/{name}" for name in names], rows, uris=[f"{name}.jpg" for name in names])
    path = folder / f"s{number}"
    if form == "arrow":
        write_vectors(f"{path}.arrow", table)
    elif form == "batches":
        with pa.OSFile(f"{path}.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif form == "parquet":
        pq.write_table(table, f"{path}.parquet", row_group_size=4)
    elif form == "lists":
        field = pa.field("vector", pa.list_(table.schema.field("vector").type.value_type)).with_metadata(
            table.schema.field("vector").metadata or {}
        )
        lists = table.column("vector").combine_chunks().cast(field.type)
        pq.write_table(table.set_column(2, field, lists), f"{path}.parquet")
    else:
        write_hdf5(folder / f"s{number}.hdf5", rows, names, chunks=(1, 2) if form == "chunked" else None)
    return [f"s{number}/{name}" for name in names]


def bits(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(DTYPES),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    width=st.integers(2, 9),
    is_mapped=st.booleans(),
)
def test_every_form_opens_as_the_same_matrix(tmp_path_factory, form, dtype, counts, width, is_mapped) -> None:
    folder = tmp_path_factory.mktemp("bank") / "b"
    parts = [rows_of(count, width, dtype, seed) for seed, count in enumerate(counts)]
    ids = [name for number, rows in enumerate(parts) for name in write_form(folder, form, number, rows)]
    whole = np.concatenate(parts)
    memory_bytes = 0 if is_mapped else 1 << 20
    for _ in range(2):  # the second time from what the first one left
        bank = open_key_bank(str(folder), memory_bytes=memory_bytes)
        assert (bank.shape, bank.dtype) == (whole.shape, dtype)
        assert bank.ids.to_pylist() == ids
        np.testing.assert_array_equal(bits(bank.rows), bits(whole))
        np.testing.assert_array_equal(bits(np.concatenate(list(bank.blocks()))), bits(whole))
    kept = list(folder.glob("cache/rows-*"))
    is_one_piece = len(counts) == 1 and (form in ("arrow", "hdf5") or (form == "batches" and counts[0] <= 3))
    assert len(kept) == (1 if is_mapped and not is_one_piece else 0)
    assert bank.rows.flags.writeable == (not is_mapped and not is_one_piece)


def test_a_file_alone_is_a_bank(tmp_path: Path) -> None:
    for form in FORMS:
        ids = write_form(tmp_path / form, form, 0, rows_of(5, 4, DTYPES[0]))
        [path] = [p for p in (tmp_path / form).iterdir() if p.suffix != ".ids"]
        bank = open_key_bank(str(path), memory_bytes=0)
        assert bank.ids.to_pylist() == ids
        np.testing.assert_array_equal(bank.rows, rows_of(5, 4, DTYPES[0]))
        assert len(bank.hash) == 64
    places = open_key_bank(str(tmp_path / "parquet")).uris
    assert places is not None
    assert places.to_pylist()[0] == "0-0.jpg"


def test_a_bank_without_rows_is_a_bank(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "a.arrow"), make_vectors([], np.zeros((0, 3), np.float16)))
    bank = open_key_bank(str(tmp_path), memory_bytes=0)
    assert (bank.rows.shape, bank.rows.dtype, bank.nbytes) == ((0, 3), np.float16, 0)


def run_folder(folder: Path, parts: list[np.ndarray]) -> str:
    """A bank as a run leaves it: shards, completions, manifest."""
    records = {}
    for number, rows in enumerate(parts):
        name = f"part-{number:05d}"
        path = folder / "shards" / f"{name}.arrow"
        write_vectors(str(path), make_vectors([f"s/{number}-{row}" for row in range(len(rows))], rows))
        records[name] = {"rows": len(rows), "sha256": files.sha256(str(path)), "counts": {}, "quarantined": 0}
        files.write_json(str(folder / "completions" / f"{name}.json"), records[name])
    files.write_json(str(folder / "manifest.json"), {"version": 1, "shards": records})
    return str(folder)


def test_a_run_s_records_spare_reading_its_shards(tmp_path: Path, monkeypatch) -> None:
    parts = [rows_of(6, 4, DTYPES[0], seed) for seed in range(3)]
    path = run_folder(tmp_path / "run", parts)
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in (tmp_path / "run" / "shards").iterdir():
        (bare / shard.name).write_bytes(shard.read_bytes())
    read = open_key_bank(str(bare)).hash

    def refuse(path: str) -> str:
        raise AssertionError(f"{path} was read through")

    monkeypatch.setattr(files, "sha256", refuse)
    assert open_key_bank(path).hash == read
    assert open_key_bank(str(tmp_path / "run" / "shards")).hash == read
    assert open_key_bank(str(bare)).hash == read  # from checksums.json by now
    for marker in (tmp_path / "run" / "completions").iterdir():
        marker.unlink()
    assert open_key_bank(path).hash == read  # from the manifest
    assert not (tmp_path / "run" / "cache").exists()


def test_records_older_than_their_shard_are_not_believed(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", [rows_of(6, 4, DTYPES[0])])
    before = open_key_bank(path).hash
    shard = tmp_path / "run" / "shards" / "part-00000.arrow"
    write_vectors(str(shard), make_vectors([f"s/0-{row}" for row in range(6)], rows_of(6, 4, DTYPES[0], 9)))
    later = os.stat(tmp_path / "run" / "manifest.json").st_mtime_ns + 10**9
    os.utime(shard, ns=(later, later))
    after = open_key_bank(path).hash
    assert after != before
    write_vectors(str(shard), make_vectors([f"s/0-{row}" for row in range(6)], rows_of(6, 4, DTYPES[0], 8)))
    os.utime(shard, ns=(later + 1, later + 1))
    assert open_key_bank(path).hash not in (before, after)  # nor is what the cache says of an earlier state


def test_the_hash_follows_content_and_order_alone(tmp_path: Path) -> None:
    def bank(name: str, seeds: list[int]) -> str:
        folder = tmp_path / name
        for number, seed in enumerate(seeds):
            table = make_vectors([f"s/{seed}-{row}" for row in range(4)], rows_of(4, 3, DTYPES[0], seed))
            write_vectors(str(folder / f"{name}{number}.arrow"), table)
        return open_key_bank(str(folder)).hash

    assert bank("a", [1, 2]) == bank("b", [1, 2])
    assert len({bank("c", [1, 2]), bank("d", [2, 1]), bank("e", [1]), bank("f", [1, 3])}) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_copy_of_the_rows_is_made_again(tmp_path: Path, damage: str) -> None:
    for number in range(2):
        write_form(tmp_path / "b", "arrow", number, rows_of(50, 8, DTYPES[1], number))
    whole = open_key_bank(str(tmp_path / "b"), memory_bytes=0).rows.copy()
    [kept] = (tmp_path / "b" / "cache").glob("rows-*.npy")
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-30])
    elif damage == "empty":
        kept.write_bytes(b"")
    else:
        np.save(kept, np.zeros((100, 8), np.float32))
    np.testing.assert_array_equal(open_key_bank(str(tmp_path / "b"), memory_bytes=0).rows, whole)
    assert np.load(kept).dtype == np.float16


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    cache = tmp_path / "b" / "cache"
    cache.mkdir(parents=True)
    (cache / f"rows-0.npy{files.TEMPORARY_MARK}1").write_bytes(b"old")
    (cache / f"rows-0.npy{files.TEMPORARY_MARK}2").write_bytes(b"being written")
    os.utime(cache / f"rows-0.npy{files.TEMPORARY_MARK}1", (1, 1))
    write_form(tmp_path / "b", "parquet", 0, rows_of(5, 4, DTYPES[0]))
    assert len(open_key_bank(str(tmp_path / "b"), memory_bytes=0).rows) == 5
    assert [path.name[-1] for path in cache.glob("*tmp*")] == ["2"]


def test_stale_files_are_pruned_and_others_kept(tmp_path: Path) -> None:
    write_form(tmp_path / "b", "parquet", 0, rows_of(5, 4, DTYPES[0]))
    bank = open_key_bank(str(tmp_path / "b"), memory_bytes=0)
    assert bank.rows is not None
    (tmp_path / "b" / "cache" / f"packed-{'0' * 32}-whole-int8.bin").write_bytes(b"12345")
    assert prune_cache(bank.cache, bank.hash) == 5
    assert sorted(path.name[:4] for path in (tmp_path / "b" / "cache").iterdir()) == ["chec", "rows"]
    assert prune_cache("", bank.hash) == 0


def test_without_a_place_for_it_nothing_is_kept_and_one_line_says_so(tmp_path: Path, caplog) -> None:
    write_form(tmp_path / "b", "parquet", 0, rows_of(5, 4, DTYPES[0]))
    (tmp_path / "b" / "cache").write_text("in the way")  # stands for a folder that cannot be written
    caplog.set_level(logging.WARNING)
    bank = open_key_bank(str(tmp_path / "b"), memory_bytes=0)
    np.testing.assert_array_equal(bank.rows, rows_of(5, 4, DTYPES[0]))
    assert "nothing is kept in" in caplog.text
    assert "GB in memory" in caplog.text
    assert (tmp_path / "b" / "cache").read_text() == "in the way"


def test_a_cache_folder_can_be_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_form(tmp_path / name, "parquet", 0, rows_of(5, 4, DTYPES[0]))
        bank = open_key_bank(str(tmp_path / name), cache=str(tmp_path / "caches"), memory_bytes=0)
        assert len(bank.rows) == 5
        assert not (tmp_path / name / "cache").exists()
    assert len(list((tmp_path / "caches").glob("*/rows-*.npy"))) == 2
    with pytest.raises(InputError, match="must be a local folder"):
        open_key_bank(str(tmp_path / "one"), cache="s3://bucket/cache")


def test_a_uri_is_read_like_a_folder(tmp_path: Path) -> None:
    for form in ("arrow", "parquet"):
        for number in range(2):
            write_form(tmp_path / form, form, number, rows_of(5, 4, DTYPES[2], number))
        bank = open_key_bank(f"file://{tmp_path / form}", memory_bytes=0)
        assert bank.cache == ""
        expected = np.concatenate([rows_of(5, 4, DTYPES[2], number) for number in range(2)])
        np.testing.assert_array_equal(bits(bank.rows), bits(expected))
        assert bank.hash == open_key_bank(str(tmp_path / form)).hash


def plain(rows: list, kind: pa.DataType, ids: list | None = None) -> pa.Table:
    return pa.table({"id": ids or [f"s/{row}" for row in range(len(rows))], "vector": pa.array(rows, kind)})


F32 = pa.float32()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (plain([[1.0, 2.0], [1.0]], pa.list_(F32)), "a.parquet.*differ in length"),
        (plain([[1.0], None], pa.list_(F32)), "null in 1 rows"),
        (plain([[1.0], [None]], pa.list_(F32)), "hold nulls"),
        (plain([None], pa.list_(F32)), "has no vector, so"),
        (plain([[1.0]], pa.list_(pa.float64())), "must hold lists of float32.*got list"),
        (plain([[1]], pa.list_(pa.uint16())), "metadata dtype=bfloat16"),
        (plain([1.0], F32), "no column 'vector' of lists"),
        (pa.table({"id": ["a"]}), "no column 'vector' of lists"),
        (pa.table({"vector": pa.array([[1.0]], pa.list_(F32))}), "column 'id' of strings, got no such column"),
        (plain([[1.0]], pa.list_(F32), ids=[7]), "column 'id' of strings, got int64"),
        (plain([[1.0], [2.0]], pa.list_(F32), ids=["a", None]), "some are null"),
        (plain([[1.0], [2.0]], pa.list_(F32), ids=["a", "a"]), "unique, but 'a' repeat"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        assert open_key_bank(str(tmp_path)).rows is not None


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_files_are_named(tmp_path: Path, form: str) -> None:
    write_form(tmp_path, form, 0, rows_of(400, 16, DTYPES[0]))
    [path] = [path for path in tmp_path.iterdir() if path.suffix != ".ids"]
    whole = path.read_bytes()
    for length in (0, 6, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=path.name):
            assert open_key_bank(str(tmp_path)).rows is not None


def test_damage_inside_a_parquet_file_is_named(tmp_path: Path) -> None:
    write_form(tmp_path, "parquet", 0, rows_of(400, 16, DTYPES[0]))
    path = tmp_path / "s0.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole Parquet file"):
        assert open_key_bank(str(tmp_path)).rows is not None


def test_widths_dtypes_and_ids_of_shards_must_agree(tmp_path: Path) -> None:
    for number, rows in enumerate([rows_of(3, 4, DTYPES[0]), rows_of(3, 5, DTYPES[0])]):
        write_form(tmp_path / "w", "arrow", number, rows)
    with pytest.raises(InputError, match="s1.arrow.*width 5, float32.*one width and dtype"):
        open_key_bank(str(tmp_path / "w"))
    for number, dtype in enumerate([DTYPES[1], DTYPES[2]]):
        write_form(tmp_path / "d", "parquet", number, rows_of(3, 4, dtype))
    with pytest.raises(InputError, match=r"s1.parquet.*bfloat16.*s0.parquet.*float16"):
        open_key_bank(str(tmp_path / "d"))
    for name in ("a", "b"):
        write_vectors(str(tmp_path / "i" / f"{name}.arrow"), make_vectors(["x"], rows_of(1, 4, DTYPES[0])))
    with pytest.raises(InputError, match="unique, but 'x' repeat"):
        open_key_bank(str(tmp_path / "i"))
    write_vectors(str(tmp_path / "t" / "a.arrow"), make_vectors(["x"], rows_of(1, 4, DTYPES[0])))
    odd = make_vectors(["y"], rows_of(1, 4, DTYPES[0])).set_column(4, "uri", pa.array([3]))
    write_vectors(str(tmp_path / "t" / "b.arrow"), odd)
    with pytest.raises(InputError, match="columns of different types"):
        open_key_bank(str(tmp_path / "t"))


def test_places_without_a_bank_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no file of vectors.*jobs/embed.py"):
        open_key_bank(str(tmp_path))
    with pytest.raises(InputError, match="is no key bank"):
        open_key_bank(str(tmp_path / "notes.txt"))
    with pytest.raises(InputError, match="does not exist"):
        open_key_bank(str(tmp_path / "absent"))
    (tmp_path / "set.hdf5").write_bytes(b"")
    with pytest.raises(InputError, match="local files only"):
        open_key_bank(f"file://{tmp_path}/set.hdf5")


def test_tables_beside_the_shards_are_no_part_of_the_bank(tmp_path: Path) -> None:
    path = run_folder(tmp_path, [rows_of(3, 4, DTYPES[0])])
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "inputs.parquet")
    assert open_key_bank(path).shape == (3, 4)


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    for dtype in DTYPES:
        rows = rows_of(9, 4, dtype)
        rows[5, 2] = np.nan
        write_vectors(str(tmp_path / "a.arrow"), make_vectors([f"s/{row}" for row in range(9)], rows))
        bank = open_key_bank(str(tmp_path))
        with pytest.raises(InputError, match="row 5, id 's/5', holds NaN"):
            check_finite(bank.rows, bank)
        with pytest.raises(InputError, match="row 5, id 's/5', holds NaN"):
            check_finite(bank.rows[4:], bank, 4)
        check_finite(bank.rows[:5], bank)


def test_big_endian_keys_are_turned_round(tmp_path: Path) -> None:
    rows = rows_of(5, 4, DTYPES[0])
    write_hdf5(tmp_path / "s.hdf5", rows.astype(">f4"), list("abcde"))
    bank = open_key_bank(str(tmp_path))
    np.testing.assert_array_equal(bank.rows, rows)
    assert bank.rows.dtype.isnative


def test_hdf5_keys_of_other_kinds_are_named(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "s.hdf5", rows_of(5, 4, np.dtype(np.float64)), list("abcde"))
    with pytest.raises(InputError, match="matrix of float64.*import_keys"):
        open_key_bank(str(tmp_path))


def test_a_damaged_list_of_checksums_is_made_again(tmp_path: Path) -> None:
    write_form(tmp_path / "b", "arrow", 0, rows_of(5, 4, DTYPES[0]))
    known = open_key_bank(str(tmp_path / "b")).hash
    kept = tmp_path / "b" / "cache" / "checksums.json"
    for content in ("{", "[]", '{"s0.arrow": 3}'):
        kept.write_text(content)
        assert open_key_bank(str(tmp_path / "b")).hash == known
        assert list(json.loads(kept.read_text())) == ["s0.arrow"]
    assert content_hash([str(tmp_path / "b" / "s0.arrow")], str(tmp_path / "b"), "") == known
    assert key_cache.bank_root("s3://b/run/shards/") == "s3://b/run"
