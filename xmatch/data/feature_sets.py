"""Sets of ready-made features by name, memory-mapped: regions, grid cells, tokens, or one pooled vector.

Shapes: N images (or captions), K members of the largest set of a batch, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data.region_places import POSITION_NUMBERS, Places, RowPlaces, SetPlaces
from xmatch.data.vectors import IMAGE_SIZE, read_vectors
from xmatch.errors import InputError

VIEW_MARK = "#flip"
"""Ends the name of an image's mirrored view."""


class FeatureBatch(NamedTuple):
    """Features (B, K, C) in the stored dtype, zero padded, and which are real, (B, K) bool."""

    features: npt.NDArray[np.floating]
    mask: npt.NDArray[np.bool_]


class FeatureSets:
    """Named sets of consecutive rows in memory-mapped matrices; a set may have a mirrored view.

    Args:
        matrices: (rows, C) arrays of one width and dtype.
        names: of the sets, unique.
        spans: (sets, 3) int64: matrix, first row, row after the last.
        where: what the sets were read from, for messages.
        places: where their members lie in the images; null: not known.
    """

    def __init__(
        self,
        matrices: Sequence[npt.NDArray[np.floating]],
        names: Sequence[str],
        spans: npt.NDArray[np.int64],
        where: str,
        places: Places | None = None,
    ) -> None:
        self.matrices, self.spans, self.where, self.places = list(matrices), spans, where, places
        self.rows = {name: row for row, name in enumerate(names)}
        self.width = int(self.matrices[0].shape[1]) if self.matrices else 0

    @classmethod
    def from_bank(cls, path: str, fetch: Callable[[str], str] = str) -> FeatureSets:
        """A bank of vectors: rows with one group are one set; a row without a group is a set by its id.

        Args:
            path: of the bank.
            fetch: from a file of it to where that is read; may give a local copy of a URI.

        Raises:
            InputError: a group's rows are not side by side, or the bank is broken.
        """
        table = read_vectors(path, fetch)
        names, starts, stops = _runs(table)
        repeated = _first_repeated(names)
        if repeated is not None:
            raise InputError(f"{path!r}: the rows of group {repeated!r} are not side by side; make the bank again.")
        matrices, offsets = _chunks(table)
        which = np.searchsorted(offsets, starts, side="right") - 1
        if len(starts) and bool((np.searchsorted(offsets, stops - 1, side="right") - 1 != which).any()):
            raise InputError(f"{path!r}: a group runs over from one file into the next; make the bank again.")
        spans = np.stack([which, starts - offsets[which], stops - offsets[which]], axis=1).astype(np.int64)
        boxes, sizes = _numbers(table, "box"), _numbers(table, IMAGE_SIZE.name)
        places = None if boxes is None or sizes is None else RowPlaces(boxes, sizes, offsets)
        return cls(matrices, names, spans, path, places)

    @classmethod
    def from_array(
        cls,
        features: npt.NDArray[np.floating],
        names: Sequence[str],
        where: str,
        boxes: npt.NDArray[np.floating] | None = None,
        sizes: npt.NDArray[np.number] | None = None,
    ) -> FeatureSets:
        """An (N, K, C) array, such as a memory-mapped `train_ims.npy`; every set has K members.

        Args:
            features: the sets.
            names: N names.
            where: what they were read from, for messages.
            boxes: (N, K, 4), x1, y1, x2, y2 in pixels, or null.
            sizes: (N, 2), width and height of the images in pixels, or null.

        Raises:
            InputError: the shapes do not fit.
        """
        if features.ndim != 3 or len(features) != len(names):
            raise InputError(
                f"{where!r}: expected ({len(names)}, K, C) features, one set a name, got {features.shape}."
            )
        count, members, width = features.shape
        places = None if boxes is None or sizes is None else SetPlaces(boxes, sizes)
        if not features.flags.c_contiguous:  # every fifth row of a redundant file: views, never a copy
            spans = np.stack([np.arange(count), np.zeros(count, np.int64), np.full(count, members)], axis=1)
            return cls(list(features), names, spans.astype(np.int64), where, places)
        starts = np.arange(count, dtype=np.int64) * members
        spans = np.stack([np.zeros_like(starts), starts, starts + members], axis=1)
        return cls([features.reshape(count * members, width)], names, spans, where, places)

    def require(self, names: Sequence[str], kind: str = "images") -> npt.NDArray[np.int64]:
        """The sets with these names, (N, V) int64 of V views: the set itself, and its mirrored view where all have one.

        Raises:
            InputError: some are missing; says how many and which.
        """
        missing = [name for name in names if name not in self.rows]
        if missing:
            raise InputError(
                f"{self.where!r} lacks features of {len(missing)} of {len(names)} {kind}, the first is {missing[0]!r}. "
                f"Make the bank again for these {kind}; its quarantine folder, if any, says why some are missing."
            )
        own = [[self.rows[name]] for name in names]
        if names and all(name + VIEW_MARK in self.rows for name in names):
            own = [[*row, self.rows[name + VIEW_MARK]] for row, name in zip(own, names, strict=True)]
        return np.array(own, dtype=np.int64).reshape(len(names), -1)

    def take(self, sets: npt.NDArray[np.int64]) -> FeatureBatch:
        """The features (B, K, C) of sets (B,), in the stored dtype, and which are real, (B, K); read from disk now."""
        chosen = self.spans[sets]
        sizes = chosen[:, 2] - chosen[:, 1]
        width = int(sizes.max()) if len(sizes) else 1
        features = np.zeros((len(sets), width, self.width), self.matrices[0].dtype)
        for row, (matrix, start, stop) in enumerate(chosen):
            features[row, : stop - start] = self.matrices[matrix][start:stop]
        return FeatureBatch(features, np.arange(width)[None, :] < sizes[:, None])

    def take_positions(self, sets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Where the members of sets (B,) lie: (B, K, 6), `region_places.position_code`, zero on padding.

        Raises:
            InputError: boxes or image sizes are not known, or a box lies outside its image; names the image.
        """
        if self.places is None:
            raise InputError(
                f"{self.where!r} does not say where its regions lie, which this model needs: expected boxes and image "
                "sizes ({split}_boxes.npy and {split}_img_sizes.npy of a precomputed folder, or the columns box and "
                "image_size, never null, of a table of vectors)."
            )
        chosen = self.spans[sets]
        sizes = chosen[:, 2] - chosen[:, 1]
        codes = np.zeros((len(sets), int(sizes.max()) if len(sizes) else 1, POSITION_NUMBERS), np.float32)
        for row, (number, span) in enumerate(zip(sets, chosen, strict=True)):
            found = self.places.of(int(number), span)
            if found.is_outside:
                name = next(name for name, own in self.rows.items() if own == number)
                raise InputError(
                    f"{self.where!r}: a box of image {name!r} passes the image's border; boxes and sizes are of "
                    "different images, or of different splits. Make both again."
                )
            codes[row, : sizes[row]] = found.code
        return codes

    def statistics(self, sets: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of each feature over all members of `sets`, float64 of shape (C,) each."""
        total, squares, count = np.zeros(self.width), np.zeros(self.width), 0
        for matrix, start, stop in self.spans[sets]:
            rows = self.matrices[matrix][start:stop].astype(np.float64)
            total, squares, count = total + rows.sum(0), squares + np.square(rows).sum(0), count + len(rows)
        mean = total / max(1, count)
        return mean, np.sqrt(np.maximum(0.0, squares / max(1, count) - mean**2))


def _runs(table: pa.Table) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Names, first rows and ends, of shape (R,), of runs of rows with one group; a null group: the row's own id."""
    names = pc.coalesce(table.column("group"), table.column("id")).combine_chunks()
    if len(names) == 0:
        return [], np.zeros(0, np.int64), np.zeros(0, np.int64)
    changes = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)
    stops = np.append(starts[1:], len(names)).astype(np.int64)
    return names.take(pa.array(starts)).to_pylist(), starts, stops


def _first_repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _chunks(table: pa.Table) -> tuple[list[npt.NDArray[np.floating]], npt.NDArray[np.int64]]:
    """Each chunk of the vectors as a view (R, C), and the first row of each."""
    column = table.column("vector")
    width = column.type.list_size
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    matrices = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in chunks]
    offsets = np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])]).astype(np.int64)
    return matrices, offsets


def _numbers(table: pa.Table, column: str) -> npt.NDArray[np.floating] | None:
    """A column of lists as (R, W), a row of the table each; null where it is not there, or has a null."""
    if column not in table.column_names or table.column(column).null_count:
        return None
    chunked = table.column(column)
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunked.chunks]
    return np.concatenate([np.zeros(0, np.float32), *flat]).reshape(len(table), chunked.type.list_size)
