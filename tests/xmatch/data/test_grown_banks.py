from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmatch.data.grown_banks import appended_hash, check_appendable, next_shard, write_appended
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import DTYPES, make_vectors, write_vectors
from xmatch.errors import InputError


def write(path: Path, rows: np.ndarray, name: str, **columns: list) -> None:
    write_vectors(str(path), make_vectors([f"{name}/{row}" for row in range(len(rows))], rows, **columns))


@pytest.mark.parametrize(
    ("last", "following"),
    [("part-00009", "part-00010"), ("7", "8"), ("part-0", "part-1"), ("a1b099", "a1b100")],
)
def test_the_next_shard_follows_in_name_order(tmp_path: Path, last: str, following: str) -> None:
    write(tmp_path / f"{last}.arrow", np.ones((1, 2), np.float32), "s")
    assert next_shard(open_key_bank(str(tmp_path))) == str(tmp_path / f"{following}.arrow")


@pytest.mark.parametrize("last", ["part-99999", "9", "x"])
def test_names_that_cannot_be_followed_are_refused(tmp_path: Path, last: str) -> None:
    write(tmp_path / f"{last}.arrow", np.ones((1, 2), np.float32), "s")
    with pytest.raises(InputError, match="cannot grow"):
        next_shard(open_key_bank(str(tmp_path)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_boxes_and_places_go_along(tmp_path: Path, dtype: np.dtype) -> None:
    rows = np.arange(6).reshape(3, 2).astype(dtype)
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path / "a" / "part-0.arrow", rows[:1], "s")
    write(tmp_path / "b" / "part-0.arrow", rows, "t", groups=["g", None, "g"], uris=["x", None, "y"], boxes=boxes)
    bank, new = open_key_bank(str(tmp_path / "a")), open_key_bank(str(tmp_path / "b"))
    assert appended_hash(bank) == ""
    path = write_appended(bank, new)
    grown = open_key_bank(str(tmp_path / "a"))
    assert grown.shards[-1].path == path
    assert appended_hash(grown) == new.hash
    for name in ("id", "group", "box", "uri"):
        assert grown.info.column(name).to_pylist()[1:] == new.info.column(name).to_pylist()
    np.testing.assert_array_equal(grown.rows[1:].astype(np.float32), rows.astype(np.float32))


def test_columns_that_the_bank_lacks_are_refused_and_missing_ones_are_null(tmp_path: Path) -> None:
    rows = np.ones((1, 2), np.float32)
    write(tmp_path / "a" / "part-0.arrow", rows, "s")
    write_vectors(str(tmp_path / "b.arrow"), make_vectors(["t/0"], rows).append_column("score", pa.array([1.0])))
    write_vectors(str(tmp_path / "c.arrow"), make_vectors(["t/0"], rows).select(["id", "vector"]))
    bank = open_key_bank(str(tmp_path / "a"))
    with pytest.raises(InputError, match="column 'score', which"):
        check_appendable(bank, open_key_bank(str(tmp_path / "b.arrow")), ({}, {}))
    new = open_key_bank(str(tmp_path / "c.arrow"))
    check_appendable(bank, new, ({}, {}))
    write_appended(bank, new)
    assert open_key_bank(str(tmp_path / "a")).info.column("uri").to_pylist() == [None, None]


def test_identities_may_differ_in_their_images_alone(tmp_path: Path) -> None:
    rows = np.ones((1, 2), np.float32)
    write(tmp_path / "a" / "part-0.arrow", rows, "s")
    write(tmp_path / "b" / "part-0.arrow", rows, "t")
    bank, new = open_key_bank(str(tmp_path / "a")), open_key_bank(str(tmp_path / "b"))
    mine = {"model": "m", "source": "x", "batch": 1, "appended": [1]}
    check_appendable(bank, new, (mine, {"model": "m", "source": "y", "batch": 2, "merged": {}}))
    for other in ({"model": "n"}, {}, {"model": "m", "views": ["flip"]}):
        with pytest.raises(InputError, match="made with another"):
            check_appendable(bank, new, (mine, other))
