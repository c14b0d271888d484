"""Boxes of Visual Genome: its objects.json or region_descriptions.json, with image_data.json for the sizes of images.

Both files are lists with an entry an image, hundreds of megabytes of JSON; they are read entry by entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from alignment.entities.entity_tables import Box, box_table
from xmatch.data import files
from xmatch.errors import InputError

SOURCE = "visual_genome"
SPACES = " \t\r\n,"
BOXES_IN_MEMORY = 100_000
"""Boxes held as Python objects before they become a table."""


class BoxCounts(NamedTuple):
    """What was read.

    Attributes:
        images: with at least one box.
        boxes: taken.
        clipped: of these, boxes that reached beyond their image.
        outside: boxes left out because no part of them is in the image.
        unnamed: objects left out because they have no name.
    """

    images: int
    boxes: int
    clipped: int
    outside: int
    unnamed: int


def read_visual_genome(path: str, image_data: str, prefix: str = "") -> tuple[pa.Table, BoxCounts]:
    """Every named object, or every region, of Visual Genome as a box; an object of several names gives several boxes.

    Args:
        path: objects.json (`objects` with `names`, x, y, w, h) or region_descriptions.json (`regions` with `phrase`,
            x, y, width, height); pixels of the image.
        image_data: image_data.json, `image_id`, `width` and `height` of every image.
        prefix: put before image ids, such as "vg_nococo/".

    Returns:
        The boxes as a table of BOX_SCHEMA in the order of the file, with score 1, and what was counted.

    Raises:
        InputError: a file has another form, or an image has no size; names entry and object, counted from 0.
    """
    sizes = _read_sizes(image_data)
    boxes: list[Box] = []
    tables: list[pa.Table] = []
    images = clipped = outside = unnamed = 0
    for row, entry in enumerate(json_entries(path)):
        before = len(boxes)
        image_id, things = _image_of(entry, path, row)
        if image_id not in sizes:
            raise InputError(
                f"{path!r}, entry {row}: image {image_id!r} has no size in {image_data!r}; use its release."
            )
        for number, thing in enumerate(things):
            where = f"{path!r}, entry {row}, object {number}"
            names = _names(thing, where)
            unnamed += not names
            sides, is_clipped = _fractions(thing, sizes[image_id], where)
            if sides is None:
                outside += 1
                continue
            clipped += is_clipped * len(names)
            boxes += [Box(f"{prefix}{image_id}", name, SOURCE, *sides, 1.0) for name in names]
        images += len(boxes) > before
        if len(boxes) >= BOXES_IN_MEMORY:
            tables.append(box_table(boxes))
            boxes = []
    table = pa.concat_tables([*tables, box_table(boxes)])
    return table, BoxCounts(images, len(table), clipped, outside, unnamed)


def json_entries(path: str) -> Iterator[Any]:
    """The entries of a JSON file that is one list, one after the other.

    Raises:
        InputError: it is no JSON list; names the entry where it breaks.
    """
    text, decoder = files.read_text(path), json.JSONDecoder()
    position = _next(text, 0)
    if text[position : position + 1] != "[":
        raise InputError(f"{path!r} is no JSON list; expected one entry an image.")
    position, count = _next(text, position + 1), 0
    while text[position : position + 1] != "]":
        try:
            entry, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path!r}, entry {count}: {error}. The file may be cut off; copy it again.") from error
        yield entry
        position, count = _next(text, position), count + 1


def _next(text: str, position: int) -> int:
    """The first place from `position` on that is no space and no comma."""
    while position < len(text) and text[position] in SPACES:
        position += 1
    return position


def _read_sizes(path: str) -> dict[str, tuple[int, int]]:
    sizes = {}
    for row, entry in enumerate(json_entries(path)):
        try:
            image_id, width, height = entry.get("image_id", entry.get("id")), entry["width"], entry["height"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path!r}, entry {row}: expected image_id, width and height ({error}).") from error
        is_whole = all(isinstance(value, int) and value > 0 for value in (width, height))
        if not isinstance(image_id, int | str) or not is_whole:
            raise InputError(f"{path!r}, entry {row}: image {image_id!r} of {width!r} x {height!r} pixels.")
        sizes[str(image_id)] = width, height
    return sizes


def _image_of(entry: Any, path: str, row: int) -> tuple[str, list[Any]]:
    things = entry.get("objects", entry.get("regions")) if isinstance(entry, dict) else None
    if not isinstance(things, list):
        raise InputError(f"{path!r}, entry {row} has no list `objects` or `regions`; expected a file of Visual Genome.")
    image_id = entry.get("image_id", entry.get("id"))
    if not isinstance(image_id, int | str):
        raise InputError(f"{path!r}, entry {row}: image_id {image_id!r} is neither a number nor text.")
    return str(image_id), things


def _names(thing: Any, where: str) -> list[str]:
    """Names of an object, or the phrase of a region, in lower case with single spaces; each once."""
    names = thing.get("names", [thing.get("phrase")]) if isinstance(thing, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: expected `names`, a list of texts, or `phrase`, got {thing!r:.80}.")
    plain = [" ".join(name.lower().split()) for name in names]
    return list(dict.fromkeys(name for name in plain if name))


def _fractions(
    thing: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[tuple[float, float, float, float] | None, bool]:
    """Sides as fractions of the image, and whether the box was clipped; None where none of it is in the image."""
    values = [thing.get("x"), thing.get("y"), thing.get("w", thing.get("width")), thing.get("h", thing.get("height"))]
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in values):
        raise InputError(f"{where}: box {values} must be four numbers of pixels: x, y, width, height.")
    x, y, w, h = (float(value) for value in values if value is not None)
    width, height = size
    sides = [x / width, y / height, (x + w) / width, (y + h) / height]
    inside = [min(1.0, max(0.0, side)) for side in sides]
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return None, False
    return (inside[0], inside[1], inside[2], inside[3]), inside != sides
