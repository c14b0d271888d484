"""The table of regions: vectors whose group is the image, with `box`, `image_size`, `tag`, `score` and `label`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data import files
from xmatch.data.region_files import DETECTED, regions_to_vectors
from xmatch.data.region_rows import ImageRegions
from xmatch.data.vectors import IMAGE_SIZE, matrix, read_vectors, write_vectors
from xmatch.errors import InputError


def write_regions(path: str, regions: Iterable[ImageRegions]) -> int:
    """Write a table of regions as one Arrow file, atomically; the number of images.

    Raises:
        InputError: there are none, an image comes twice, or widths differ.
    """
    images = list(regions)
    seen: set[str] = set()
    for image in images:
        if image.image_id in seen:
            raise InputError(f"image {image.image_id!r} comes twice; a table has one set of regions for each.")
        seen.add(image.image_id)
    write_vectors(path, regions_to_vectors(images))
    return len(images)


class RegionTable:
    """The regions of images by id; rows are read from disk when they are asked for.

    Args:
        place: an `.arrow` file, a folder of them, or a run of jobs/extract_regions.py.
        fetch: from a file of it to where that is read; may give a local copy of a URI.

    Raises:
        InputError: it is no table of regions, or the rows of an image are not side by side.
    """

    def __init__(self, place: str, fetch: Callable[[str], str] = str) -> None:
        self.place = place
        self.table = read_vectors(place, fetch)
        groups = self.table.column("group").combine_chunks()
        if groups.null_count:
            row = groups.is_null().index(True).as_py()
            raise InputError(f"{place!r}, row {row}: a region without its image (group); make the table again.")
        changes = pc.not_equal(groups[1:], groups[:-1]).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])[: len(groups)].astype(np.int64)
        stops = [*starts[1:].tolist(), len(groups)]
        self.rows: dict[str, tuple[int, int]] = {}
        for name, start, stop in zip(groups.take(pa.array(starts)).to_pylist(), starts.tolist(), stops):
            if name in self.rows:
                raise InputError(f"{place!r}, row {start}: the rows of image {name!r} are not side by side.")
            self.rows[name] = start, stop
        self.width: int = self.table.schema.field("vector").type.list_size

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.rows

    def __iter__(self) -> Iterator[ImageRegions]:
        """The regions of every image, in the table's order."""
        return (self.take(name) for name in self.rows)

    def take(self, image_id: str) -> ImageRegions:
        """The regions of an image.

        Raises:
            InputError: the table has none.
        """
        if image_id not in self.rows:
            raise InputError(
                f"{self.place!r} has no regions of image {image_id!r}; its ids are such as "
                f"{next(iter(self.rows), 'none')!r}. Extract them, or see its quarantine."
            )
        start, stop = self.rows[image_id]
        rows = self.table.slice(start, stop - start)
        has_boxes = rows.column("box").null_count == 0
        sizes = matrix(rows, IMAGE_SIZE.name) if IMAGE_SIZE.name in rows.column_names else np.zeros((1, 2), np.float32)
        said = {field.name: _column(rows, field.name) for field in DETECTED}
        return ImageRegions(
            image_id,
            matrix(rows, "box").astype(np.float32) if has_boxes else np.zeros((0, 4), np.float32),
            matrix(rows).astype(np.float32),
            int(sizes[0, 0]),
            int(sizes[0, 1]),
            tuple(said["tag"] or ()),
            None if said["score"] is None else np.array(said["score"], np.float32),
            None if said["label"] is None else np.array(said["label"], np.int64),
        )

    def where(self, image_id: str) -> str:
        """File and first row of an image, for messages."""
        return f"{self.place!r}, row {self.rows[image_id][0]}"

    def require(self, image_ids: Sequence[str], width: int | None = None) -> None:
        """Check that images have regions, of a width.

        Args:
            image_ids: of them.
            width: numbers a region that the model reads (region_width); none: any.

        Raises:
            InputError: some have none, or the width is another.
        """
        missing = [name for name in image_ids if name not in self.rows]
        if missing:
            raise InputError(
                f"{self.place!r} lacks regions of {len(missing):,} of {len(image_ids):,} images, the first is "
                f"{missing[0]!r}; its ids are such as {next(iter(self.rows), 'none')!r}."
            )
        if width is not None and width != self.width:
            raise InputError(wrong_width(f"{self.place!r}, row 0", self.width, width))


def wrong_width(where: str, found: int, wanted: int) -> str:
    """What to say of regions whose width is not the model's; `where` names file and row."""
    return (
        f"{where}: regions have {found} numbers, but the model reads {wanted} (region_width). Give the "
        "features it was trained on, or set region_width and train on these."
    )


def _column(rows: pa.Table, name: str) -> list[Any] | None:
    if name not in rows.column_names or rows.column(name).null_count:
        return None
    found: list[Any] = rows.column(name).to_pylist()
    return found


def is_table(place: str) -> bool:
    """Whether a place is a table of regions, and no TSV."""
    return place.endswith(".arrow") or files.is_folder(place)
