"""Features as JSON lines: there and back to the bit, empty slots, bad lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.original_files.features import (
    read_entity_features,
    read_features,
    write_entity_features,
    write_features,
)
from alignment.rerank.entity_slots import read_slots
from xmatch.data.vectors import make_vectors, matrix, write_vectors
from xmatch.errors import InputError


def lines(path: Path, entries: list) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def numbers(*shape: int) -> list:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(float).tolist()


@pytest.mark.parametrize(("key", "ids"), [("image_id", ["9", "10"]), ("query_id", [8, 3])])
def test_features_go_there_and_back(tmp_path: Path, key, ids: list) -> None:
    path = lines(tmp_path / "a", [{key: one, "feature": row} for one, row in zip(ids, numbers(2, 5))])
    table = read_features(path, key)
    assert table.column("id").to_pylist() == [str(one) for one in ids]
    assert matrix(table).dtype == np.float32
    write_features(str(tmp_path / "b"), table, key)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("side", ["prompts", "masked_texts"])
def test_entity_features_go_there_and_back(tmp_path: Path, side) -> None:
    path = lines(tmp_path / "a", [{"query_id": one, "feature": block} for one, block in zip((4, 7), numbers(2, 3, 5))])
    whole = read_entity_features(path, side)
    assert (len(whole.vectors), whole.bare_text, whole.left_out) == (6, None, 0)
    letter = "p" if side == "prompts" else "m"
    assert whole.vectors.column("id").to_pylist()[:4] == [f"4#{letter}000{at}" for at in (0, 1, 2)] + [
        f"7#{letter}0000"
    ]
    assert whole.vectors.column("group").to_pylist() == ["4"] * 3 + ["7"] * 3
    assert written(tmp_path, whole.vectors, side, None) == (tmp_path / "a").read_text()


def written(folder: Path, table, side, bare) -> str:
    """The file that `table` gives; the other side has the same vectors."""
    places = []
    for letter in "pm":
        ids = [one.replace("#p", f"#{letter}").replace("#m", f"#{letter}") for one in table.column("id").to_pylist()]
        places.append(str(folder / f"{letter}.arrow"))
        groups = table.column("group").to_pylist()
        write_vectors(places[-1], make_vectors(ids, matrix(table), groups=groups))
    slots = read_slots(*places, ["4", "7"], 3)
    write_entity_features(str(folder / "b"), ["4", "7"], slots, side, bare)
    return (folder / "b").read_text()


def test_empty_slots_are_left_out_by_count_and_filled_again(tmp_path: Path) -> None:
    blocks = numbers(2, 3, 5)
    blocks[0][1] = blocks[0][2] = blocks[1][2]
    path = lines(tmp_path / "a", [{"query_id": one, "feature": block} for one, block in zip((4, 7), blocks)])
    found = read_entity_features(path, "prompts", {"4": 1, "7": 2})
    assert (len(found.vectors), found.left_out) == (3, 3)
    bare = matrix(found.bare_text)[0]
    assert bare.tolist() == blocks[1][2]
    assert written(tmp_path, found.vectors, "prompts", bare) == (tmp_path / "a").read_text()
    with pytest.raises(InputError, match="2 captions, such as '4', have fewer than 3 entities"):
        written(tmp_path, found.vectors, "prompts", None)
    with pytest.raises(InputError, match="1 of 2 captions, such as '7', are not in the entities table"):
        read_entity_features(path, "prompts", {"4": 1})
    many = read_entity_features(path, "prompts", {"4": 9, "7": 9})
    assert (len(many.vectors), many.left_out) == (6, 0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"query_id": 2, "feature": [1.0]}, r"line 2: a feature has the shape \(1,\); expected a list of 2"),
        ({"query_id": 2, "feature": [1.0, "x"]}, "line 2: a feature is no list of numbers"),
        ({"query_id": 2, "feature": [1.0, float("nan")]}, "line 2: a feature holds NaN or infinity"),
        ({"query_id": "2", "feature": [1.0, 2.0]}, "mixed types in query_id"),
        ({"query_id": 1, "feature": [1.0, 2.0]}, "line 2: query_id '1' was in line 1"),
        ({"query_id": 2}, "line 2: no field 'feature'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, second: dict, message: str) -> None:
    path = lines(tmp_path / "a", [{"query_id": 1, "feature": [1.0, 2.0]}, second])
    with pytest.raises(InputError, match=message):
        read_features(path, "query_id")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"query_id": 2, "feature": [[1.0, 2.0]]}, "line 2: 1 vectors, those before have 2"),
        ({"query_id": 2, "feature": [[1.0], [2.0]]}, "line 2: a feature has the shape"),
        ({"query_id": 2, "feature": [1.0, 2.0]}, "line 2: a feature has the shape"),
    ],
)
def test_bad_lines_of_entities_are_named(tmp_path: Path, second: dict, message: str) -> None:
    path = lines(tmp_path / "a", [{"query_id": 1, "feature": [[1.0, 2.0], [3.0, 4.0]]}, second])
    with pytest.raises(InputError, match=message):
        read_entity_features(path, "prompts")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="holds no features"):
        read_features(str(tmp_path / "a"), "image_id")
