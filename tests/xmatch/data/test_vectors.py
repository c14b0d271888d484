from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmatch.data.vectors import BFLOAT16, make_vectors, matrix, read_vectors, vector_schema, write_vectors
from xmatch.errors import InputError


def some(count: int, width: int = 3, dtype: type = np.float32, first: int = 0) -> pa.Table:
    rows = np.arange(count * width, dtype=dtype).reshape(count, width) + first
    return make_vectors([f"set/{first + i}" for i in range(count)], rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_is_written_is_read(tmp_path: Path, count: int, dtype: type) -> None:
    path = str(tmp_path / "a.arrow")
    write_vectors(path, some(count, dtype=dtype))
    table = read_vectors(path)
    assert matrix(table).dtype == dtype
    np.testing.assert_array_equal(matrix(table), np.arange(count * 3).reshape(count, 3))


def test_a_folder_is_its_files_in_name_order(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "shards" / "part-00001.arrow"), some(2, first=10))
    write_vectors(str(tmp_path / "shards" / "part-00000.arrow"), some(2))
    table = read_vectors(str(tmp_path))
    assert table.column("id").to_pylist() == ["set/0", "set/1", "set/10", "set/11"]
    assert matrix(table).shape == (4, 3)


def test_groups_boxes_and_uris_travel(tmp_path: Path) -> None:
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    table = make_vectors(["a", "b"], np.ones((2, 2), np.float32), groups=["g", None], boxes=boxes, uris=["u", "v"])
    write_vectors(str(tmp_path / "x.arrow"), table)
    back = read_vectors(str(tmp_path / "x.arrow"))
    assert back.column("group").to_pylist() == ["g", None]
    assert back.column("uri").to_pylist() == ["u", "v"]
    np.testing.assert_array_equal(matrix(back, "box"), boxes)


def test_widths_must_agree(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "a.arrow"), some(1))
    write_vectors(str(tmp_path / "b.arrow"), some(1, width=4, first=5))
    with pytest.raises(InputError, match="b.arrow.*one width"):
        read_vectors(str(tmp_path))


def test_ids_must_not_repeat(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "a.arrow"), some(2))
    write_vectors(str(tmp_path / "b.arrow"), some(2))
    with pytest.raises(InputError, match="unique"):
        read_vectors(str(tmp_path))


def test_counts_must_agree() -> None:
    with pytest.raises(InputError, match="2 vectors came with 1 ids"):
        make_vectors(["a"], np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="float32 or float16"):
        make_vectors(["a"], np.ones((1, 2)))


@pytest.mark.parametrize("damage", ["truncate", "missing", "other"])
def test_a_broken_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.arrow"
    write_vectors(str(path), some(3))
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "missing":
        path.unlink()
    else:
        table = pa.table({"x": [1]})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match="a.arrow"):
        read_vectors(str(path))


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs/embed.py"):
        read_vectors(str(tmp_path))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_bfloat16_travels_as_its_bits(tmp_path: Path, count: int) -> None:
    rows = np.arange(count * 3).reshape(count, 3).astype(BFLOAT16)
    write_vectors(str(tmp_path / "a.arrow"), make_vectors([f"set/{i}" for i in range(count)], rows))
    table = read_vectors(str(tmp_path / "a.arrow"))
    assert table.schema.field("vector").type == pa.list_(pa.uint16(), 3)
    assert matrix(table).dtype == BFLOAT16
    np.testing.assert_array_equal(matrix(table).view(np.uint16), rows.view(np.uint16))
    assert vector_schema(3, BFLOAT16).equals(table.schema, check_metadata=True)


def test_number_formats_of_a_bank_must_agree(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "a.arrow"), some(1, dtype=BFLOAT16))
    bare = make_vectors(["b"], np.ones((1, 3), BFLOAT16)).cast(
        pa.schema([f.with_metadata(None) for f in vector_schema(3, BFLOAT16)])
    )
    write_vectors(str(tmp_path / "b.arrow"), bare)
    with pytest.raises(InputError, match=r"b.arrow.*uint16 with the field metadata dtype=bfloat16"):
        read_vectors(str(tmp_path))
    write_vectors(str(tmp_path / "b.arrow"), some(1, dtype=np.float16, first=5))
    with pytest.raises(InputError, match=r"b.arrow.*float16.*a.arrow.*bfloat16"):
        read_vectors(str(tmp_path))
