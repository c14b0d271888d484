"""The tables of entities and boxes: what is written is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.entities.entity_tables import (
    BOX_SCHEMA,
    ENTITY_SCHEMA,
    Box,
    CaptionEntities,
    Entity,
    box_table,
    boxes_of_images,
    check_boxes,
    check_entities,
    entity_rows,
    entity_table,
    read_boxes,
    read_entities,
    string_ids,
    table_files,
    write_boxes,
    write_entities,
)
from xmatch.data import files
from xmatch.errors import InputError

ROWS = [
    CaptionEntities("1", "a", "A red dog 🙂 é", (Entity("A red dog", 0, 9), Entity("🙂 é", 10, 13))),
    CaptionEntities("2", "a", "", ()),
]
BOXES = [Box("a", "a red dog", "grounding", 0.0, 0.25, 0.5, 1.0, 0.75), Box("b", "tree", "x", 0.1, 0, 1, 1, 1)]


@given(st.lists(st.text(alphabet="ab 🙂é\n", min_size=1, max_size=9), max_size=5))
def test_entities_survive_their_table(captions: list[str]) -> None:
    last = [Entity(text[-1], len(text) - 1, len(text)) for text in captions]
    rows = [CaptionEntities(str(at), "i", text, (last[at],)) for at, text in enumerate(captions)]
    table = entity_table(rows)
    assert table.schema == ENTITY_SCHEMA
    check_entities(table, "here")
    assert entity_rows(table) == rows


def test_tables_are_read_from_files_folders_and_runs(tmp_path: Path) -> None:
    write_entities(str(tmp_path / "run/entities/shards/part-00000.parquet"), entity_table(ROWS[:1]))
    write_entities(str(tmp_path / "run/entities/shards/part-00001.parquet"), entity_table(ROWS[1:]))
    write_boxes(str(tmp_path / "run/boxes/shards/part-00000.parquet"), box_table(BOXES))
    files.write_parquet(str(tmp_path / "run/entities/inputs.parquet"), pa.table({"x": [1]}))
    for place in ("run", "run/entities", "run/entities/shards"):
        assert entity_rows(read_entities(str(tmp_path / place))) == ROWS
    read = read_boxes(str(tmp_path / "run"))
    assert read.equals(read_boxes(str(tmp_path / "run/boxes/shards/part-00000.parquet")))
    assert read.schema == BOX_SCHEMA and box_table([]).schema == BOX_SCHEMA
    assert [box.phrase for box in boxes_of_images(read)["a"]] == ["a red dog"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="make them with jobs/extract_entities"):
        table_files(str(tmp_path / "empty"), "entities")
    with pytest.raises(InputError, match="does not exist"):
        read_boxes(str(tmp_path / "none"))


def test_one_id_in_two_files_is_refused(tmp_path: Path) -> None:
    for part in "01":
        write_entities(str(tmp_path / f"{part}.parquet"), entity_table(ROWS[:1]))
    with pytest.raises(InputError, match="ids must be unique, but '1' repeat"):
        read_entities(str(tmp_path))


def changed(entity: Entity) -> pa.Table:
    return entity_table([ROWS[1], ROWS[0]._replace(entities=(entity,))])


@pytest.mark.parametrize(
    "entity",
    [Entity("a red dog", 0, 9), Entity("A red", 0, 9), Entity("", 3, 3), Entity("é", 12, 14), Entity("d", -1, 2)],
)
def test_an_entity_that_is_not_in_its_caption_is_named(tmp_path: Path, entity: Entity) -> None:
    path = str(tmp_path / "e.parquet")
    files.write_parquet(path, changed(entity))
    with pytest.raises(InputError, match=rf"e\.parquet', row 1: entity {entity.text!r} is not in its caption"):
        read_entities(path)
    with pytest.raises(InputError, match="row 1"):
        write_entities(path, changed(entity))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x2": 1.5}, r"row 1: box of 'tree' in image 'b' has x1 0.1, y1 0, x2 1.5"),
        ({"x1": float("nan")}, "x1 nan"),
        ({"score": float("inf")}, "finite score"),
        ({"y1": 1.0}, "0 <= x1 < x2 <= 1"),
        ({"y1": -0.01}, "y1 -0.01"),
        ({"phrase": "Tree"}, "row 1: phrase 'Tree' must be in lower case"),
    ],
)
def test_a_box_that_is_none_is_named(tmp_path: Path, change: dict, message: str) -> None:
    path = str(tmp_path / "b.parquet")
    files.write_parquet(path, box_table([BOXES[0], BOXES[1]._replace(**change)]))
    with pytest.raises(InputError, match=message):
        read_boxes(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("image_id", pa.array([1, 2]), "'image_id' must be string, got int64. Ids are strings everywhere"),
        ("image_id", pa.array(["a", None]), "row 1: image_id is null"),
        ("caption", pa.array([b"a", b"b"]), "'caption' must be string"),
        ("entities", pa.array([[], [{"text": "A"}]]), "'entities' must be list"),
        ("entities", None, "no column 'entities'"),
    ],
)
def test_a_wrong_column_is_named(column: str, values: pa.Array | None, message: str) -> None:
    table = entity_table(ROWS)
    at = table.schema.get_field_index(column)
    wrong = table.drop_columns([column]) if values is None else table.set_column(at, column, values)
    with pytest.raises(InputError, match=message):
        check_entities(wrong, "here")


def test_tables_of_other_writers_are_read(tmp_path: Path) -> None:
    wide = pa.struct([("text", pa.large_string()), ("start", pa.int64()), ("end", pa.int64())])
    table = entity_table(ROWS).cast(pa.schema([*list(ENTITY_SCHEMA)[:3], ("entities", pa.large_list(wide))]))
    files.write_parquet(str(tmp_path / "w.parquet"), table)
    assert entity_rows(read_entities(str(tmp_path / "w.parquet"))) == ROWS
    texts = list(BOX_SCHEMA)[:3]
    doubles = box_table(BOXES).cast(pa.schema([*texts, *((name, pa.float64()) for name in BOX_SCHEMA.names[3:])]))
    check_boxes(doubles, "here")


def test_ids_of_mixed_types_are_refused() -> None:
    assert string_ids([1, 2], "f", "id") == ["1", "2"]
    assert string_ids([], "f", "id") == []
    for wrong, row in (([1, "1"], 1), (["a", None], 1), ([1.5], 0), ([True, 1], 0)):
        with pytest.raises(InputError, match=f"'f', row {row}: id .* expected all texts or all whole numbers"):
            string_ids(wrong, "f", "id")
