"""Region features in TSV files, an image at a time; region_rows.py knows the forms of their lines.

A `.lineidx` beside a file holds the byte offset of each of its lines, for reading at random.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.region_rows import FORM_OF_COLUMNS, PAIR_COLUMNS, PARSERS, BadRegions, ImageRegions
from xmatch.data.vectors import make_vectors
from xmatch.errors import InputError

SIZE_TOLERANCE = 1.0
"""Pixels by which a box may pass the image's border: detectors count pixels in two ways."""
BAD_ROWS_SHOWN = 5
DETECTED = (pa.field("tag", pa.string()), pa.field("score", pa.float32()), pa.field("label", pa.int64()))
"""Columns of a table of regions that it has where the detector said them of every region."""


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
    if len(boxes) not in (0, len(regions.features)):
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
        self._offsets: npt.NDArray[np.int64] | None = None
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
        if self._offsets is None:
            self._offsets = _read_line_offsets(self.path)
        offsets = self._offsets
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

    The images' sizes stand beside the boxes where the file knows all of them, and so do, as columns `tag`, `score` and
    `label`, what the detector says.

    Raises:
        InputError: there are no regions, or images differ in the width of their features.
    """
    regions = list(regions)
    ids: list[str] = []
    groups: list[str | None] = []
    boxes: list[npt.NDArray[np.float32]] = []
    features: list[npt.NDArray[np.float32]] = []
    sizes: list[npt.NDArray[np.float32]] = []
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
        sizes.append(np.tile(np.array([image.width, image.height], np.float32), (len(image.features), 1)))
    if not features:
        raise InputError("no regions to make vectors of; expected at least one image with good rows.")
    image_sizes, corners = np.concatenate(sizes), np.concatenate(boxes)
    table = make_vectors(
        ids,
        np.concatenate(features),
        groups=groups,
        boxes=corners if len(corners) == len(ids) else None,
        image_sizes=image_sizes if image_sizes.all() else None,
    )
    for field in DETECTED:
        values = [value for image in regions for value in _said(image, field.name)]
        if len(values) == len(ids):
            table = table.append_column(field, pa.array(values, field.type))
    return table


def _said(image: ImageRegions, name: str) -> Sequence[Any]:
    """What the detector says of each region; nothing where it does not."""
    if name == "tag":
        return image.tags
    found = image.scores if name == "score" else image.labels
    return () if found is None else found.tolist()


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
    """The offsets in the `.lineidx` beside a file, int64 of shape (rows,); null where there is none."""
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
