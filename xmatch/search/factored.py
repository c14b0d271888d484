"""Images whose score with a text is a sum of maxima: of each part the best of the image's views.

    score(image, text) = sum over parts p of  max over views v of  < row_p[image, v], text[columns of p] >

Vectors of several views are often equal but for some columns: SelfAlign on CAMERA gives 12 views of 6,144 numbers, of
which the last 4,096 are the same in each. As two parts, one of 12 views of 2,048 and one of a single view of 4,096, an
image is 28,672 numbers instead of 73,728, and the score is the same: what is shared may be taken out of the maximum.

On disk a factored bank is a folder with two banks of vectors:

    views/    id "IMAGE#v00" …, group IMAGE, the columns that differ
    shared/   id IMAGE, the columns that all views share

Shapes: N images, V views, E width of a whole vector, D of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from xmatch.data import files
from xmatch.data.key_banks import KeyBank, open_key_bank
from xmatch.data.steps import shard_name
from xmatch.data.vectors import SUFFIX, make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.search.grouped import Groups, groups_of
from xmatch.search.scores import Rows, is_float

VIEWS, SHARED = "views", "shared"
BLOCK_BYTES = 1 << 26
"""Whole vectors that are compared at a time."""


class Part(NamedTuple):
    """One term of the score.

    Attributes:
        rows: (N V, D) float32, float16 or bfloat16, the views of one image side by side; may be memory-mapped, and
            strided, such as some columns of a wider matrix.
        views: V.
    """

    rows: Rows
    views: int


@dataclass(frozen=True, eq=False)
class FactoredVectors:
    """N images as parts.

    Attributes:
        parts: at least one; a text's columns belong to them in this order.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        is_good = all(part.views > 0 and part.rows.ndim == 2 and is_float(part.rows.dtype) for part in self.parts)
        if not is_good or len({len(part.rows) / part.views for part in self.parts}) != 1:
            shapes = ", ".join(f"{part.rows.dtype} {part.rows.shape} of {part.views} views" for part in self.parts)
            raise ValueError(f"expected parts (N V, D) of float32, float16 or bfloat16 with one N, got {shapes}")

    def __len__(self) -> int:
        return len(self.parts[0].rows) // self.parts[0].views

    @property
    def width(self) -> int:
        """E, of a text."""
        return sum(part.rows.shape[1] for part in self.parts)

    @property
    def columns(self) -> tuple[slice, ...]:
        """A text's columns of each part."""
        edges = np.cumsum([0, *(part.rows.shape[1] for part in self.parts)]).tolist()
        return tuple(slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False))

    def images(self, rows: slice) -> FactoredVectors:
        """Some of the images, with a step of one."""
        cut = ((part, slice(rows.start * part.views, rows.stop * part.views)) for part in self.parts)
        return FactoredVectors(tuple(Part(part.rows[own], part.views) for part, own in cut))


def factor(rows: Rows, views: int, dim: int) -> FactoredVectors:
    """Whole vectors as two parts, without a copy: the columns that differ by view, and those that are shared.

    Args:
        rows: (N V, E), the views of one image side by side.
        views: V.
        dim: columns that differ; all that follow are the same in every view of an image. E itself: nothing is shared.

    Raises:
        ValueError: the rows are no whole number of images, or dim is not from 1 to E.
        InputError: a view differs from its image's first in a shared column; names both.
    """
    if views < 1 or len(rows) % views or not 1 <= dim <= rows.shape[1]:
        raise ValueError(f"expected (N V, E) rows with V {views} and 1 <= dim <= E, got {rows.shape} and {dim}")
    if dim == rows.shape[1]:
        return FactoredVectors((Part(rows, views),))
    for start, whole in _image_blocks(rows, views):
        differing = np.argwhere(whole[:, :, dim:] != whole[:, :1, dim:])
        if len(differing):
            image, view, column = (int(at) for at in differing[0])
            raise InputError(
                f"view {view} of image {start + image} differs from view 0 in column {dim + column}, but columns from "
                f"{dim} on must be the same in all views of an image. Give the width of the model's views as dim."
            )
    return FactoredVectors((Part(rows[:, :dim], views), Part(rows[::views, dim:], 1)))


def shared_from(rows: Rows, views: int) -> int:
    """The least `dim` that `factor` takes: from there on all views of every image agree; at least 1.

    Args:
        rows: (N V, E), the views of one image side by side.
        views: V.
    """
    least, width = 1, int(rows.shape[1])
    for _, whole in _image_blocks(rows, views):
        differs = (whole[:, :, least:] != whole[:, :1, least:]).any((0, 1))
        least += int(np.flatnonzero(differs).max()) + 1 if differs.any() else 0
    return width if views == 1 else min(width, least)


def _image_blocks(rows: Rows, views: int) -> Iterator[tuple[int, Rows]]:
    """The first image of a block, and (n, V, E) of it."""
    step = max(1, BLOCK_BYTES // max(1, views * rows.shape[1] * rows.itemsize))
    for start in range(0, len(rows) // views, step):
        yield start, rows[start * views : (start + step) * views].reshape(-1, views, rows.shape[1])


class FactoredBank(NamedTuple):
    """A factored bank on disk.

    Attributes:
        vectors: of the images, memory-mapped where the files can be.
        ids: N ids of images, in the order of the rows.
    """

    vectors: FactoredVectors
    ids: pa.ChunkedArray


def equal_views(groups: Groups, where: str) -> int:
    """V of a bank whose images all have V rows, side by side.

    Raises:
        InputError: they have not; names the first image that differs.
    """
    sizes = groups.sizes
    if len(sizes) and not (groups.are_side_by_side and (sizes == sizes[0]).all()):
        odd = int(np.flatnonzero(sizes != sizes[0])[0]) if (sizes != sizes[0]).any() else 0
        raise InputError(
            f"{where!r}: expected the same number of rows for every image, side by side; image "
            f"{groups.name(odd)!r} has {sizes[odd]}, the first has {sizes[0]}"
            f"{'' if groups.are_side_by_side else ', and rows of an image lie apart'}. Embed the images again."
        )
    return int(sizes[0]) if len(sizes) else 1


def write_factored(bank: KeyBank, dim: int, output: str, images_per_shard: int = 4096) -> None:
    """Write a bank of whole vectors as a factored one.

    Args:
        bank: rows of all views, `group` the image.
        dim: columns that differ by view.
        output: folder, which gets `views` and `shared`.
        images_per_shard: images in one file.

    Raises:
        InputError: images have different numbers of views, or a column from `dim` on is not shared.
    """
    groups = groups_of(bank.info)
    views = equal_views(groups, bank.path)
    if not 1 <= dim < bank.shape[1]:
        raise InputError(
            f"{bank.path!r} is {bank.shape[1]} wide; expected dim from 1 to {bank.shape[1] - 1}, got {dim}."
        )
    factored = factor(bank.rows, views, dim)
    ids, images = bank.ids, groups.names.to_pylist()
    for number, start in enumerate(range(0, len(factored), images_per_shard)):
        stop = min(len(factored), start + images_per_shard)
        own = images[start:stop]
        of_view = [name for name in own for _ in range(views)]
        rows = ids[start * views : stop * views].to_pylist()
        parts = [np.ascontiguousarray(part.rows) for part in factored.images(slice(start, stop)).parts]
        file = f"{shard_name(number)}{SUFFIX}"
        write_vectors(files.join(output, VIEWS, file), make_vectors(rows, parts[0], groups=of_view))
        write_vectors(files.join(output, SHARED, file), make_vectors(own, parts[1]))


def open_factored(folder: str, cache: str | None = None) -> FactoredBank:
    """Open what `write_factored` wrote.

    Args:
        folder: with `views` and `shared`.
        cache: as of `open_key_bank`.

    Raises:
        InputError: one of the two is missing or broken, or they are not of the same images in the same order.
    """
    views, shared = (open_key_bank(files.join(folder, name), cache) for name in (VIEWS, SHARED))
    groups = groups_of(views.info)
    count = equal_views(groups, views.path)
    if groups.names.to_pylist() != shared.ids.to_pylist():
        raise InputError(
            f"{views.path!r} and {shared.path!r} are not of the same images in the same order ({len(groups.sizes)} and "
            f"{shared.shape[0]} of them). Write both again from one bank."
        )
    return FactoredBank(FactoredVectors((Part(views.rows, count), Part(shared.rows, 1))), shared.ids)
