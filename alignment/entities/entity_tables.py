"""The two tables of entities: spans of captions, and boxes in images; written whole, and checked when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data import files
from xmatch.data.vectors import check_unique
from xmatch.errors import InputError

ENTITY = pa.struct([("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
ENTITY_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("entities", pa.list_(ENTITY), nullable=False),
    ]
)
"""One row a caption, those without entities too. `start` and `end` count characters (code points) of `caption`, and
`text` is caption[start:end], in the caption's own case."""

BOX_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        *(pa.field(side, pa.float32(), nullable=False) for side in ("x1", "y1", "x2", "y2")),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""One row a box. `phrase` is in lower case; sides are fractions of the image's width and height, from its upper left
corner, with x1 < x2 and y1 < y2; `source` says what found it, such as `grounding` or `visual_genome`."""


class Entity(NamedTuple):
    """A span of a caption: its text, and its first and past-the-last character."""

    text: str
    start: int
    end: int


class CaptionEntities(NamedTuple):
    """A caption with its entities, basic phrases first."""

    caption_id: str
    image_id: str
    caption: str
    entities: tuple[Entity, ...]


class Box(NamedTuple):
    """Where a phrase is in an image, in fractions of the image's width and height."""

    image_id: str
    phrase: str
    source: str
    x1: float
    y1: float
    x2: float
    y2: float
    score: float


def entity_table(rows: Iterable[CaptionEntities]) -> pa.Table:
    """Captions with their entities as a table of ENTITY_SCHEMA."""
    rows = list(rows)
    columns: list[list[object]] = [[row[at] for row in rows] for at in range(3)]
    columns.append([[entity._asdict() for entity in row.entities] for row in rows])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTITY_SCHEMA, strict=True)]
    return pa.table(arrays, schema=ENTITY_SCHEMA)


def entity_rows(table: pa.Table) -> list[CaptionEntities]:
    """The rows of a table of ENTITY_SCHEMA."""
    return [
        CaptionEntities(
            row["caption_id"],
            row["image_id"],
            row["caption"],
            tuple(Entity(e["text"], e["start"], e["end"]) for e in row["entities"]),
        )
        for row in table.to_pylist()
    ]


def box_table(boxes: Iterable[Box]) -> pa.Table:
    """Boxes as a table of BOX_SCHEMA."""
    columns = list(zip(*boxes, strict=True)) or [()] * len(BOX_SCHEMA)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, BOX_SCHEMA, strict=True)]
    return pa.table(arrays, schema=BOX_SCHEMA)


def check_entities(table: pa.Table, where: str) -> None:
    """Check a table of entities.

    Raises:
        InputError: a column is missing, of another type or null, a caption id repeats, or an entity is not in its
            caption; names `where` and the row, counted from 0.
    """
    _check_columns(table, ENTITY_SCHEMA, where)
    check_unique(table.column("caption_id"), where)
    for row, (caption, entities) in enumerate(
        zip(table.column("caption").to_pylist(), table.column("entities").to_pylist(), strict=True)
    ):
        for entity in entities:
            if entity is None or None in entity.values():
                raise InputError(f"{where!r}, row {row}: an entity, or a part of one, is null. Make the table again.")
            text, start, end = entity["text"], entity["start"], entity["end"]
            if not 0 <= start < end <= len(caption) or caption[start:end] != text:
                found = repr(caption[start:end]) if 0 <= start < end else "nothing"
                raise InputError(
                    f"{where!r}, row {row}: entity {text!r} is not in its caption {caption!r:.120}: characters {start} "
                    f"to {end} are {found}. Offsets count code points; make the table again."
                )


def check_boxes(table: pa.Table, where: str) -> None:
    """Check a table of boxes.

    Raises:
        InputError: a column is missing, of another type or null, a side is no number or outside of the image, or a
            box has no area; names `where` and the row, counted from 0.
    """
    _check_columns(table, BOX_SCHEMA, where)
    sides = box_sides(table)
    is_inside = ((sides >= 0) & (sides <= 1)).all(1) & (sides[:, 0] < sides[:, 2]) & (sides[:, 1] < sides[:, 3])
    bad = ~is_inside | ~np.isfinite(table.column("score").to_numpy())
    if bad.any():
        row = int(np.argmax(bad))
        values = ", ".join(f"{name} {table.column(name)[row].as_py():.6g}" for name in BOX_SCHEMA.names[3:])
        raise InputError(
            f"{where!r}, row {row}: box of {table.column('phrase')[row].as_py()!r} in image "
            f"{table.column('image_id')[row].as_py()!r} has {values}; expected 0 <= x1 < x2 <= 1, the same of y, and a "
            "finite score. Give sides as fractions of the image."
        )
    phrases = table.column("phrase")
    is_lower = pc.equal(pc.utf8_lower(phrases), phrases).to_numpy(zero_copy_only=False)
    if not is_lower.all():
        row = int(np.argmin(is_lower))
        raise InputError(f"{where!r}, row {row}: phrase {phrases[row].as_py()!r} must be in lower case.")


def box_sides(table: pa.Table) -> npt.NDArray[np.float32]:
    """(N, 4) float32: x1, y1, x2, y2 of every box."""
    return np.stack([table.column(side).to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)


def read_entities(place: str) -> pa.Table:
    """All entities of a file, a folder, or a run of jobs/extract_entities.py, checked.

    Raises:
        InputError: nothing is there, or a file is broken; names file and row.
    """
    table = pa.concat_tables([read_entity_file(path) for path in table_files(place, "entities")])
    check_unique(table.column("caption_id"), place)
    return table


def read_entity_file(path: str) -> pa.Table:
    """One file of entities, checked."""
    table = files.read_parquet(path)
    check_entities(table, path)
    return table.select(ENTITY_SCHEMA.names).cast(ENTITY_SCHEMA)


def read_boxes(place: str) -> pa.Table:
    """All boxes of a file, a folder, or a run of jobs/extract_entities.py, checked.

    Raises:
        InputError: nothing is there, or a file is broken; names file and row.
    """
    tables = []
    for path in table_files(place, "boxes"):
        table = files.read_parquet(path)
        check_boxes(table, path)
        tables.append(table.select(BOX_SCHEMA.names).cast(BOX_SCHEMA))
    return pa.concat_tables(tables)


def boxes_of_images(table: pa.Table) -> dict[str, list[Box]]:
    """Boxes by image, in the order of the table."""
    found: dict[str, list[Box]] = {}
    for row in table.to_pylist():
        found.setdefault(row["image_id"], []).append(Box(**row))
    return found


def write_entities(path: str, table: pa.Table) -> None:
    """Write a checked table of entities as one Parquet file, atomically."""
    check_entities(table, path)
    files.write_parquet(path, table)


def write_boxes(path: str, table: pa.Table) -> None:
    """Write a checked table of boxes as one Parquet file, atomically."""
    check_boxes(table, path)
    files.write_parquet(path, table)


def table_files(place: str, part: Literal["entities", "boxes"]) -> list[str]:
    """The Parquet files of a table, in name order.

    Args:
        place: a file, a folder of files, a run's folder, or the output of jobs/extract_entities.py.
        part: the sub-folder of that output.

    Raises:
        InputError: there are none.
    """
    if not files.is_folder(place):
        if not files.exists(place):
            raise InputError(f"{place!r} does not exist; expected {part}, as jobs/extract_entities.py makes them.")
        return [place]
    for folder in (f"{part}/shards", part, "shards", ""):
        found = files.list_files(files.join(place, folder) if folder else place, ".parquet")
        if found:
            return found
    raise InputError(f"no Parquet file of {part} in {place!r}; make them with jobs/extract_entities.py.")


def _check_columns(table: pa.Table, schema: pa.Schema, where: str) -> None:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise InputError(f"{where!r} has no column {missing[0]!r}; expected {', '.join(schema.names)}.")
    for field in schema:
        kind = table.schema.field(field.name).type
        if not _is_like(kind, field.type):
            note = " Ids are strings everywhere." if field.name.endswith("_id") else ""
            raise InputError(f"{where!r}: column {field.name!r} must be {field.type}, got {kind}.{note}")
        if table.column(field.name).null_count:
            row = table.column(field.name).is_null().index(True).as_py()
            raise InputError(f"{where!r}, row {row}: {field.name} is null. Make the table again.")


def _is_like(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column can be read as one of another type, as other writers spell lists, texts and numbers."""
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and _is_like(kind.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        names = [field.name for field in wanted]
        is_same = pa.types.is_struct(kind) and [kind.field(at).name for at in range(kind.num_fields)] == names
        return is_same and all(_is_like(kind.field(field.name).type, field.type) for field in wanted)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(kind))
    return bool(pa.types.is_floating(kind))


def string_ids(values: Sequence[object], where: str, name: str) -> list[str]:
    """Ids of a file as strings: all texts, or all whole numbers.

    Raises:
        InputError: they are of mixed types, or of another; names `where` and the first row that differs.
    """
    kinds = {type(value) for value in values}
    if kinds <= {str} or kinds <= {int}:
        return [str(value) for value in values]
    first = type(values[0])
    row = next(row for row, value in enumerate(values) if type(value) is not first or first not in (str, int))
    raise InputError(
        f"{where!r}, row {row}: {name} {values[row]!r} is of type {type(values[row]).__name__}; expected all texts or "
        "all whole numbers, since 1 and '1' would become one id. Write them alike."
    )
