"""Region features in the TSV files of bottom-up attention and VinVL, an image at a time.

Forms, all tab-separated without a header; arrays are base64 of little-endian float32:

    lxmert  img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features
    caffe   image_id, image_w, image_h, num_boxes, boxes, features
    vinvl   image id, JSON {image_w, image_h, objects: [{rect, feature}, ...]}
    vinvl_pair   features.tsv: image id, number of boxes, features; and predictions.tsv, as vinvl without `feature`

A `.lineidx` beside a file holds the byte offset of each of its lines, for reading at random.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.vectors import make_vectors
from xmatch.errors import InputError

MAX_BOXES = 10_000
SIZE_TOLERANCE = 1.0
"""Pixels by which a box may pass the image's border: detectors count pixels in two ways."""
BAD_ROWS_SHOWN = 5


class ImageRegions(NamedTuple):
    """The K regions of one image.

    boxes: (K, 4) float32, x1, y1, x2, y2 in pixels. features: (K, C) float32.
    width, height: of the image in pixels; 0 where the file does not say.
    """

    image_id: str
    boxes: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    width: int
    height: int


class BadRegions(ValueError):
    """A row that cannot be used; the message says why."""


def floats(text: str | bytes, count: int, what: str) -> npt.NDArray[np.float32]:
    """Base64 of float32 numbers as (count, ...) rows.

    Raises:
        BadRegions: it is not base64, not whole rows, or not finite.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRegions(f"{what} are not base64 ({error})") from error
    if not data or len(data) % (4 * count):
        raise BadRegions(f"{what} have {len(data)} bytes, which are not {count} rows of float32")
    found = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(count, -1)
    if not np.isfinite(found).all():
        raise BadRegions(f"{what} hold a number that is not finite")
    return found


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 0 < int(text) <= MAX_BOXES:
        raise BadRegions(f"expected 1 to {MAX_BOXES} boxes, got {text[:20]!r}")
    return int(text)


def _size(width: Any, height: Any) -> tuple[int, int]:
    try:
        found = int(float(width)), int(float(height))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRegions(f"expected an image size in pixels, got {str(width)[:20]!r} x {str(height)[:20]!r}") from error
    if min(found) < 1:
        raise BadRegions(f"expected an image size in pixels, got {found[0]} x {found[1]}")
    return found


def parse_lxmert(fields: list[str]) -> ImageRegions:
    """A row of ten columns, as LXMERT writes it: height before width."""
    count = _count(fields[7])
    width, height = _size(fields[2], fields[1])
    return ImageRegions(
        fields[0], floats(fields[8], count, "boxes"), floats(fields[9], count, "features"), width, height
    )


def parse_caffe(fields: list[str]) -> ImageRegions:
    """A row of six columns, as the Caffe bottom-up attention writes it: width before height."""
    count = _count(fields[3])
    width, height = _size(fields[1], fields[2])
    return ImageRegions(
        fields[0], floats(fields[4], count, "boxes"), floats(fields[5], count, "features"), width, height
    )


def parse_vinvl(fields: list[str]) -> ImageRegions:
    """A row of an image id and JSON whose objects hold `rect` and `feature`."""
    objects, boxes, width, height = _vinvl_objects(fields[1])
    if not all(isinstance(thing.get("feature"), str) for thing in objects):
        raise BadRegions("an object has no 'feature'; features in a file of their own are read with `predictions`")
    rows = [floats(thing["feature"], 1, "features") for thing in objects]
    if len({row.shape for row in rows}) != 1:
        raise BadRegions("the objects' features differ in width")
    return ImageRegions(fields[0], boxes, np.concatenate(rows), width, height)


def parse_vinvl_pair(fields: list[str]) -> ImageRegions:
    """A row of features.tsv (id, count, base64) joined with the id and JSON of its row of predictions.tsv."""
    image_id, count, features, other_id, payload = fields
    if image_id != other_id:
        raise BadRegions(f"image {image_id!r} meets the predictions of {other_id!r}: both files need one order")
    objects, boxes, width, height = _vinvl_objects(payload)
    if _count(count) != len(objects):
        raise BadRegions(f"{count} features meet {len(objects)} predicted objects")
    return ImageRegions(image_id, boxes, floats(features, len(objects), "features"), width, height)


def _vinvl_objects(payload: str) -> tuple[list[dict[str, Any]], npt.NDArray[np.float32], int, int]:
    """Objects, their rects (K, 4), width and height; a bare list of objects has no size: 0 and 0."""
    try:
        content = json.loads(payload)
        objects = content if isinstance(content, list) else content["objects"]
        boxes = np.asarray([thing["rect"] for thing in objects], dtype=np.float32)
        width, height = (0, 0) if content is objects else _size(content["image_w"], content["image_h"])
    except BadRegions:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BadRegions(f"expected JSON with image_w, image_h and objects with rect ({error!r:.80})") from error
    if not 0 < len(objects) <= MAX_BOXES or boxes.shape != (len(objects), 4):
        raise BadRegions(f"expected 1 to {MAX_BOXES} objects with four numbers of rect each, got {boxes.shape}")
    declared = content.get("num_boxes", len(objects)) if isinstance(content, dict) else len(objects)
    if declared != len(objects):
        raise BadRegions(f"num_boxes is {declared}, but there are {len(objects)} objects")
    return objects, boxes, width, height


PARSERS: dict[str, Callable[[list[str]], ImageRegions]] = {
    "lxmert": parse_lxmert,
    "caffe": parse_caffe,
    "vinvl": parse_vinvl,
    "vinvl_pair": parse_vinvl_pair,
}
PAIR_COLUMNS = 5
"""Three of features.tsv and two of predictions.tsv."""
FORM_OF_COLUMNS = {10: "lxmert", 6: "caffe", 2: "vinvl", PAIR_COLUMNS: "vinvl_pair"}


def check_regions(regions: ImageRegions) -> None:
    """Check that boxes are boxes and lie in their image.

    Raises:
        BadRegions: they do not; names the first.
    """
    boxes = regions.boxes
    if not regions.image_id:
        raise BadRegions("the image id is empty")
    if boxes.shape[1] != 4:
        raise BadRegions(f"expected four numbers a box, got {boxes.shape[1]}")
    if len(boxes) != len(regions.features):
        raise BadRegions(f"{len(boxes)} boxes, but {len(regions.features)} features")
    limit = np.asarray([regions.width, regions.height] * 2, dtype=np.float32) if regions.width else np.float32(np.inf)
    is_bad = ~np.isfinite(boxes).all(1) | (boxes[:, :2] > boxes[:, 2:]).any(1)
    is_bad |= (boxes < -SIZE_TOLERANCE).any(1) | (boxes > limit + SIZE_TOLERANCE).any(1)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise BadRegions(
            f"box {row} is {boxes[row].tolist()}, but the image has {regions.width} x {regions.height} pixels; "
            "expected x1 <= x2 and y1 <= y2 inside it"
        )


class RegionFile:
    """A file of regions: iterate over its images, or take one by its line with `at`.

    bad_rows and first_bad count and describe the lines that the last pass left out.
    """

    def __init__(self, path: str, predictions: str | None = None) -> None:
        """A file of any of the forms; VinVL's features.tsv comes with its predictions.tsv.

        Raises:
            InputError: a file is not there, is empty, or has none of the forms.
        """
        self.path = path
        self.predictions = predictions
        self.bad_rows = 0
        self.first_bad: list[str] = []
        first = next(self._rows(), None)
        columns = len(first[2]) if first else 0
        if FORM_OF_COLUMNS.get(columns) is None or (columns == PAIR_COLUMNS) != (predictions is not None):
            raise InputError(
                f"{path!r}, line 1: {columns} columns; expected {_forms()}. "
                "Three columns of VinVL features need their predictions file too."
            )
        self.columns = columns
        self._parse = PARSERS[FORM_OF_COLUMNS[columns]]

    def __iter__(self) -> Iterator[ImageRegions]:
        """The images in order, bad lines left out and counted.

        Raises:
            InputError: the `.lineidx` beside the file is not that of the file.
        """
        self.bad_rows, self.first_bad = 0, []
        offsets = _read_line_offsets(self.path)
        channels: int | None = None
        count = 0
        for row, start, fields in self._rows():
            count += 1
            if offsets is not None and (row >= len(offsets) or offsets[row] != start):
                raise InputError(_wrong_index(self.path, row))
            try:
                found = self._row(fields)
                if found.features.shape[1] != (channels or found.features.shape[1]):
                    raise BadRegions(f"features of {found.features.shape[1]} numbers; those before had {channels}")
            except BadRegions as error:
                self.bad_rows += 1
                if len(self.first_bad) < BAD_ROWS_SHOWN:
                    self.first_bad.append(f"{self.path!r}, line {row + 1}: {error}")
                continue
            channels = found.features.shape[1]
            yield found
        if offsets is not None and len(offsets) != count:
            raise InputError(_wrong_index(self.path, count))

    def at(self, row: int) -> ImageRegions:
        """The image of line `row`, from 0, found through the `.lineidx`.

        Raises:
            InputError: there is no such index or line, the form is a pair, or the line is bad.
        """
        offsets = _read_line_offsets(self.path)
        if offsets is None or not 0 <= row < len(offsets) or self.predictions is not None:
            raise InputError(
                f"{self.path!r} has no line {row} to be found: expected a .lineidx beside it with an offset for each "
                "line, and no file of predictions. Make one with write_line_offsets."
            )
        with _open_lines(self.path) as source:
            source.seek(int(offsets[row]) - 1 if row else 0)
            before = source.read(1) if row else b"\n"
            line = source.readline()
        if before != b"\n":
            raise InputError(_wrong_index(self.path, row))
        try:
            return self._row(_fields(line))
        except BadRegions as error:
            raise InputError(f"{self.path!r}, line {row + 1}: {error}. Make the file again.") from error

    def _row(self, fields: list[str]) -> ImageRegions:
        if len(fields) != self.columns:
            raise BadRegions(f"expected {self.columns} columns, got {len(fields)}; the line may be truncated")
        found = self._parse(fields)
        check_regions(found)
        return found

    def _rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """Line number from 0, byte offset and fields; of a pair, the fields of both lines."""
        start = 0
        with _open_lines(self.path) as source:
            if self.predictions is None:
                for row, line in enumerate(source):
                    yield row, start, _fields(line)
                    start += len(line)
                return
            with _open_lines(self.predictions) as other:
                for row, line in enumerate(source):
                    yield row, start, _fields(line) + _fields(other.readline())
                    start += len(line)
                if other.readline():
                    raise InputError(f"{self.predictions!r} has more lines than {self.path!r}; expected a line each.")


def write_line_offsets(path: str) -> str:
    """Write the `.lineidx` of a TSV: the byte offset of each line, in decimal, a line each; its path."""
    offsets = []
    start = 0
    with _open_lines(path) as source:
        for line in source:
            offsets.append(f"{start}\n")
            start += len(line)
    files.write_bytes(_index_path(path), "".join(offsets).encode())
    return _index_path(path)


def regions_to_vectors(regions: Iterable[ImageRegions]) -> pa.Table:
    """A table of vectors, one row a region: id `IMAGE#r00`, `IMAGE#r01`, ..., group the image id, box in pixels.

    Raises:
        InputError: there are no regions, or images differ in the width of their features.
    """
    ids: list[str] = []
    groups: list[str | None] = []
    boxes: list[npt.NDArray[np.float32]] = []
    features: list[npt.NDArray[np.float32]] = []
    for image in regions:
        if features and image.features.shape[1] != features[0].shape[1]:
            raise InputError(
                f"image {image.image_id!r} has features of {image.features.shape[1]} numbers, but those before it have "
                f"{features[0].shape[1]}; vectors of one table must have one width."
            )
        ids += [f"{image.image_id}#r{row:02d}" for row in range(len(image.features))]
        groups += [image.image_id] * len(image.features)
        boxes.append(image.boxes)
        features.append(image.features)
    if not features:
        raise InputError("no regions to make vectors of; expected at least one image with good rows.")
    return make_vectors(ids, np.concatenate(features), groups=groups, boxes=np.concatenate(boxes))


def _forms() -> str:
    return ", ".join(f"{columns} ({form})" for columns, form in FORM_OF_COLUMNS.items() if columns != PAIR_COLUMNS)


def _fields(line: bytes) -> list[str]:
    return line.rstrip(b"\r\n").decode("utf-8", errors="replace").split("\t")


@contextmanager
def _open_lines(path: str) -> Iterator[io.BufferedReader]:
    filesystem, inside = files.filesystem_of(path)
    try:
        with filesystem.open_input_file(inside) as source, io.BufferedReader(source, 1 << 20) as lines:
            yield lines
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a file of regions there.") from error
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error}.") from error


def _index_path(path: str) -> str:
    return os.path.splitext(path)[0] + ".lineidx"


def _read_line_offsets(path: str) -> npt.NDArray[np.int64] | None:
    """The offsets in the `.lineidx` beside a file, (rows,) int64; null where there is none."""
    place = _index_path(path)
    if not files.exists(place):
        return None
    lines = files.read_text(place).split()
    bad = [row for row, text in enumerate(lines) if not (text.isdecimal() and len(text) < 19)]
    if bad:
        raise InputError(f"{place!r}, line {bad[0] + 1}: expected a byte offset, got {lines[bad[0]][:20]!r}.")
    return np.asarray([int(text) for text in lines], dtype=np.int64)


def _wrong_index(path: str, row: int) -> str:
    return (
        f"{_index_path(path)!r}, line {row + 1}: it is not the offset of that line of {path!r}. It may be of another "
        "file, or count characters instead of bytes: make it again with write_line_offsets, or remove it."
    )
