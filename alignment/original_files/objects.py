"""AGREE's visual entities: names of the objects in an image, and Visual Genome's regions of every name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from alignment.original_files.json_lines import Line, id_texts, unique_ids, write_lines, written_id
from xmatch.errors import InputError

OBJECT_SCHEMA = pa.schema(
    [pa.field("image_id", pa.string(), nullable=False), pa.field("objects", pa.list_(pa.string()), nullable=False)]
)
"""One row an image: the names of what is in it."""

REGION_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("regions", pa.list_(pa.string()), nullable=False),
    ]
)
"""One row an object's name and an image of Visual Genome that was listed for it; each region is the JSON it came as.
A name without images has one row, whose image_id is empty."""


def object_table(lines: Iterable[Line], path: str) -> pa.Table:
    """`*_imgs_objs.jsonl`: `image_id` and `image_objects`, as a table of OBJECT_SCHEMA.

    Raises:
        InputError: a line is broken, or ids are of mixed types; names file and line.
    """
    read = [
        (line.number, line.value("image_id", (int, str), path), line.texts("image_objects", path)) for line in lines
    ]
    ids = unique_ids([(number, one) for number, one, _ in read], "image_id", path)
    names = pa.array([objects for *_, objects in read], OBJECT_SCHEMA.field("objects").type)
    return pa.table([pa.array(ids, pa.string()), names], schema=OBJECT_SCHEMA)


def write_objects(path: str, table: pa.Table) -> int:
    """Write a table of OBJECT_SCHEMA as an original's file, ids as texts; how many lines."""
    rows = table.to_pylist()
    return write_lines(path, ({"image_id": row["image_id"], "image_objects": row["objects"]} for row in rows))


def region_table(lines: Iterable[Line], path: str) -> pa.Table:
    """`vocab_VG_images_objs.jsonl`: `vocab` and `objects`, as a table of REGION_SCHEMA.

    Raises:
        InputError: a line is broken, a name comes twice, or ids are of mixed types; names file and line.
    """
    names: list[tuple[int, Any]] = []
    rows: list[tuple[str, int, Any, list[str]]] = []
    for line in lines:
        name = line.value("vocab", str, path)
        names.append((line.number, name))
        images = line.value("objects", list, path)
        for image in images:
            inner = Line(line.number, image if isinstance(image, dict) else {})
            regions = [json.dumps(one) for one in inner.value("object", list, path)]
            rows.append((name, line.number, inner.value("image_id", (int, str), path), regions))
        if not images:
            rows.append((name, line.number, None, []))
    unique_ids(names, "vocab", path)
    listed = iter(id_texts([(number, one) for _, number, one, _ in rows if one is not None], "image_id", path))
    ids = ["" if one is None else next(listed) for _, _, one, _ in rows]
    columns = [[name for name, *_ in rows], ids, [regions for *_, regions in rows]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REGION_SCHEMA)]
    return pa.table(arrays, schema=REGION_SCHEMA)


def write_regions(path: str, table: pa.Table) -> int:
    """Write a table of REGION_SCHEMA as `vocab_VG_images_objs.jsonl`; how many lines.

    Raises:
        InputError: a region is no JSON.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        images = found.setdefault(row["name"], [])
        if row["image_id"]:
            try:
                regions = [json.loads(one) for one in row["regions"]]
            except ValueError as error:
                raise InputError(
                    f"a region of {row['name']!r} in image {row['image_id']!r} is no JSON: {error}."
                ) from error
            images.append({"image_id": written_id(row["image_id"], as_number=True), "object": regions})
    return write_lines(path, ({"vocab": name, "objects": images} for name, images in found.items()))
