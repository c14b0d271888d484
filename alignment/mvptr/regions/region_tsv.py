"""Regions as the TSV files of the originals: VinVL's pair, MVPTR's own, Maria's; each with its `.lineidx`.

The offsets of a `.lineidx` count bytes, as readers seek; the original's writer counts characters, which is the same for
ASCII alone (golden `mvptr_tsv.json`).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from alignment.mvptr.regions.geometry import with_geometry, without_geometry
from xmatch.data import files
from xmatch.data.region_files import RegionFile
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError

FEATURES, PREDICTIONS, ROW_OF_IMAGE = "features.tsv", "predictions.tsv", "imageid2idx.json"
MARIA_BOXES = 36
"""Regions of an image in Maria's file."""


def encoded(array: np.ndarray, kind: str) -> str:
    """Base64 of an array of any shape in a little-endian number format."""
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(kind)).tobytes()).decode()


def mvptr_line(image: ImageRegions) -> str:
    """Image id, and JSON of features and classes."""
    _require_tags(image)
    content = {"feature": encoded(image.features, "<f4"), "predictions": list(image.tags)}
    return f"{image.image_id}\t{json.dumps(content)}"


def features_line(image: ImageRegions) -> str:
    """Image id, number of boxes, features: a line of VinVL's features.tsv."""
    return f"{image.image_id}\t{len(image.features)}\t{encoded(image.features, '<f4')}"


def predictions_line(image: ImageRegions) -> str:
    """Image id, and JSON of size and objects: a line of VinVL's predictions.tsv."""
    _require_tags(image)
    objects = [
        {"class": tag, **({} if image.scores is None else {"conf": float(image.scores[row])}), "rect": box}
        for row, (tag, box) in enumerate(zip(image.tags, image.boxes.tolist(), strict=True))
    ]
    content = {"image_h": image.height, "image_w": image.width, "num_boxes": len(objects), "objects": objects}
    return f"{image.image_id}\t{json.dumps(content)}"


def maria_line(image: ImageRegions) -> str:
    """Image id, and a Python dict of classes, boxes and features: a line of `*_d2obj36_batch_noAttr.tsv`.

    Raises:
        InputError: it has not exactly 36 regions.
    """
    _require_tags(image)
    if len(image.features) != MARIA_BOXES or len(image.boxes) != MARIA_BOXES:
        raise InputError(
            f"image {image.image_id!r} has {len(image.features)} regions, Maria's file {MARIA_BOXES} of each image; "
            f"extract with --regions.min_regions {MARIA_BOXES} --regions.max_regions {MARIA_BOXES}."
        )
    labels = np.zeros(MARIA_BOXES, np.int64) if image.labels is None else image.labels
    scores = np.ones(MARIA_BOXES, np.float32) if image.scores is None else image.scores
    content = {
        "objects_class": list(image.tags),
        "objects_id": encoded(labels, "<i8"),
        "objects_conf": encoded(scores, "<f4"),
        "boxes": encoded(image.boxes, "<f4"),
        "features": encoded(image.features, "<f4"),
        "img_h": image.height,
        "img_w": image.width,
    }
    return f"{image.image_id}\t{content!r}"


def _require_tags(image: ImageRegions) -> None:
    if len(image.tags) != len(image.features):
        raise InputError(f"image {image.image_id!r} has {len(image.features)} regions and {len(image.tags)} tags.")


def write_mvptr(folder: str, images: Iterable[ImageRegions]) -> int:
    """Write `predictions.tsv` as MVPTR's own tool does, the six numbers of the box behind each feature.

    Raises:
        InputError: boxes, sizes or tags are not known, or an image comes twice.
    """
    made = ((image.image_id, mvptr_line(with_geometry(image))) for image in images)
    return _write_indexed(files.join(folder, PREDICTIONS), made, folder)


def write_vinvl(folder: str, images: Callable[[], Iterable[ImageRegions]]) -> int:
    """Write VinVL's `features.tsv` and `predictions.tsv`, in one order.

    Args:
        folder: of both.
        images: gives them, twice.

    Raises:
        InputError: boxes, sizes or tags are not known, or an image comes twice.
    """
    made = ((image.image_id, predictions_line(image)) for image in images())
    _write_indexed(files.join(folder, PREDICTIONS), made, folder)
    return _write_indexed(
        files.join(folder, FEATURES), ((i.image_id, features_line(with_geometry(i))) for i in images()), folder
    )


def write_maria(path: str, images: Iterable[ImageRegions]) -> int:
    """Write Maria's file of concepts, features without the six numbers of the box; the number of images.

    Raises:
        InputError: an image has not exactly 36 regions, comes twice, or its boxes or tags are not known.
    """
    return _write_indexed(path, ((image.image_id, maria_line(without_geometry(image))) for image in images))


def _write_indexed(path: str, lines: Iterable[tuple[str, str]], folder: str = "") -> int:
    """Write lines of (image id, text), the `.lineidx` beside, and in `folder`, if any, which line is whose."""
    row_of: dict[str, int] = {}
    offsets: list[str] = []
    start = 0
    with files.open_atomic(path) as sink:
        for image_id, line in lines:
            if image_id in row_of or not image_id or set("\t\r\n") & set(image_id):
                raise InputError(
                    f"{path!r}, row {len(offsets)}: image id {image_id!r} repeats, is empty, or breaks the line."
                )
            row_of[image_id] = len(offsets)
            offsets.append(f"{start}\n")
            data = f"{line}\n".encode()
            sink.write(data)
            start += len(data)
    files.write_bytes(f"{os.path.splitext(path)[0]}.lineidx", "".join(offsets).encode())
    if folder:
        files.write_bytes(files.join(folder, ROW_OF_IMAGE), json.dumps(row_of).encode())
    return len(offsets)


def read_all(path: str, predictions: str | None = None) -> Iterator[ImageRegions]:
    """Every image of a TSV of any form; nothing is left out.

    Raises:
        InputError: a line is broken; names file and line.
    """
    source = RegionFile(path, predictions)
    for image in source:
        if source.bad_rows:
            break
        yield image
    if source.bad_rows:
        raise InputError(f"{source.first_bad[0]}. Make the file again.")


class TsvRegions:
    """Regions by image id from MVPTR's `predictions.tsv`, its `.lineidx` and `imageid2idx.json`.

    Without these two files, the TSV is read through once.

    Raises:
        InputError: a file is broken, or imageid2idx.json names a line that is not there.
    """

    def __init__(self, path: str) -> None:
        self.place = path
        self.source = RegionFile(path)
        beside = files.join(path.rpartition("/")[0] or ".", ROW_OF_IMAGE)
        self.rows = _read_rows(beside) if files.exists(beside) else _scan(path)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.rows

    def where(self, image_id: str) -> str:
        """File and line of an image, for messages."""
        return f"{self.place!r}, line {self.rows[image_id] + 1}"

    def take(self, image_id: str) -> ImageRegions:
        """The regions of an image.

        Raises:
            InputError: the file has none, its line is broken, or is another image's.
        """
        if image_id not in self.rows:
            raise InputError(f"{self.place!r} has no image {image_id!r}; see {ROW_OF_IMAGE} beside it.")
        found = self.source.at(self.rows[image_id])
        if found.image_id != image_id:
            raise InputError(
                f"{self.where(image_id)}: image {found.image_id!r}, but {ROW_OF_IMAGE} has "
                f"{image_id!r} there; make both again."
            )
        return found


def _read_rows(path: str) -> dict[str, int]:
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(type(row) is int for row in content.values()):
        raise InputError(f"{path!r} is no map from image ids to lines; make it again.")
    return content


def _scan(path: str) -> dict[str, int]:
    return {image.image_id: row for row, image in enumerate(read_all(path))}
