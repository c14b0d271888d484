from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from xmatch.data import files
from xmatch.errors import InputError


@pytest.mark.parametrize("part", ["../x", "/etc/passwd", "a/../../b", "s3://bucket/x", "..\\x", "a\0b"])
def test_no_name_from_data_leaves_its_root(part: str) -> None:
    with pytest.raises(InputError, match="would leave"):
        files.join("/data", part)


def test_join_keeps_uris_and_roots() -> None:
    assert files.join("s3://bucket/run/", "shards", "a.parquet") == "s3://bucket/run/shards/a.parquet"
    assert files.join("/", "a") == "/a"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.open_atomic(path) as sink:
        sink.write(b"half")
        raise RuntimeError("killed")
    assert files.read_bytes(path) == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_unfinished_files_are_not_listed_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / f"b.parquet{files.TEMPORARY_MARK}1").write_bytes(b"")
    assert files.list_files(str(tmp_path)) == [str(tmp_path / "a.parquet")]
    assert files.remove_temporaries(str(tmp_path)) == [f"b.parquet{files.TEMPORARY_MARK}1"]
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        files.write_bytes(str(tmp_path / "file" / "below"), b"")


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a":\n 1,,}')
    with pytest.raises(InputError, match="line 2, column 4"):
        files.read_json(str(tmp_path / "x.json"))
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        files.read_json(str(tmp_path / "empty.json"))


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(InputError, match="line 2"):
        files.read_text(str(tmp_path / "x.txt"))


def test_equal_tables_give_equal_parquet_and_a_truncated_one_is_refused(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    first, second = str(tmp_path / "1"), str(tmp_path / "2")
    files.write_parquet(first, table)
    files.write_parquet(second, pa.table({"a": [1, 2, 3]}))
    assert files.sha256(first) == files.sha256(second)
    (tmp_path / "3").write_bytes((tmp_path / "1").read_bytes()[:-9])
    with pytest.raises(InputError, match="truncated"):
        files.read_parquet(str(tmp_path / "3"))


def test_json_is_written_the_same_whatever_the_order_of_keys(tmp_path: Path) -> None:
    files.write_json(str(tmp_path / "1"), {"a": 1, "b": 2})
    files.write_json(str(tmp_path / "2"), {"b": 2, "a": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("path", ["s4://x/y", "nonsense://"])
def test_an_unknown_scheme_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="cannot use"):
        files.filesystem_of(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_json_that_cannot_be_held_is_one_paragraph(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="nests too deeply or holds a number too long"):
        files.read_json(str(tmp_path / "x.json"))


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_bytes(str(tmp_path / "x"), 5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes, more than the 4 allowed"):
        files.read_bytes(str(tmp_path / "x"), 4)
    with pytest.raises(InputError, match="does not exist"):
        files.read_bytes(str(tmp_path / "y"), 4)
    with pytest.raises(InputError, match="no regular file"):
        files.read_bytes(str(tmp_path), 4)


def test_without_a_base_a_name_stays_where_the_job_runs() -> None:
    assert files.join("", "etc/passwd") == "./etc/passwd"
    assert files.join("", "", "etc/passwd") == ".//etc/passwd"
