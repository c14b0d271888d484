"""Where similarity scores come from: embeddings, a saved matrix, or the mean of several; always read block by block.

Rows are images, columns captions (or both one kind, for matches within a kind). A source hands out any rectangle of
its matrix; nothing here holds the whole of it.
Shapes: N images, M captions, D the shared space.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.errors import InputError

Block = npt.NDArray[np.floating]
"""Scores of some rows against some columns, float32 or float64; higher is closer."""


PICKLE_START = b"\x80"
"""First byte of a pickle of protocol 2 or later."""


STRIP = 250
"""Rows (of a matrix in Fortran order: columns) of a mapped file that are copied at a time."""


class Similarities(Protocol):
    """A matrix of scores that is read by rectangles."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def block(self, rows: slice, columns: slice) -> Block:
        """Scores of a rectangle, float32 or float64, finite; slices have a step of one and lie inside the shape."""
        ...


@dataclass(frozen=True)
class EmbeddingSimilarities:
    """Inner products of two sets of embeddings.

    Attributes:
        images: (N, D) embeddings, float32 (float16 is widened once).
        texts: (M, D) embeddings.
    """

    images: npt.NDArray[np.floating]
    texts: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        images, texts = self.images, self.texts
        if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
            raise InputError(
                f"images {images.shape} and texts {texts.shape} must be matrices of one width. "
                "Embed both with the same model."
            )
        for attribute, name, rows in (("images", "image", images), ("texts", "text", texts)):
            if rows.dtype.kind != "f":
                raise InputError(f"{name} embeddings are {rows.dtype}; expected floating point. Convert to float32.")
            object.__setattr__(
                self, attribute, rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
            )
            broken = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(broken):
                raise InputError(
                    f"{name} embedding {broken[0]} holds NaN or infinity ({len(broken)} of {len(rows)} do); "
                    "expected finite numbers. Embed them again, in float32 if half precision overflowed."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.images), len(self.texts)

    def block(self, rows: slice, columns: slice) -> Block:
        """One matrix product."""
        product: Block = self.images[rows] @ self.texts[columns].T
        return product


@dataclass(frozen=True)
class MatrixSimilarities:
    """A score matrix that lies in memory or is memory-mapped.

    Attributes:
        matrix: (N, M) float16, float32 or float64; half precision is widened block by block.
        name: what errors call it.
        mapping: the memory-mapped file behind `matrix`, if there is one.
    """

    matrix: npt.NDArray[np.floating]
    name: str = "the similarity matrix"
    mapping: mmap.mmap | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.dtype.kind != "f" or self.matrix.dtype.itemsize > 8:
            raise InputError(
                f"{self.name} is {self.matrix.dtype} of shape {self.matrix.shape}; expected a matrix (images x "
                "captions) of float16, float32 or float64. Save it again in that form."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def block(self, rows: slice, columns: slice) -> Block:
        """The rectangle, widened to native float32 at least.

        Raises:
            InputError: a score in it is NaN or infinite.
        """
        wide = np.float64 if self.matrix.dtype.itemsize == 8 else np.float32
        found: Block = (
            np.ascontiguousarray(self.matrix[rows, columns], dtype=wide)
            if self.mapping is None
            else self._copied(self.matrix[rows, columns], wide, self.mapping)
        )
        if not np.isfinite(found.sum()):
            broken = np.argwhere(~np.isfinite(found))
            if len(broken):
                row, column = rows.start + broken[0][0], columns.start + broken[0][1]
                raise InputError(
                    f"{self.name} holds {found[tuple(broken[0])]} at row {row}, column {column}; expected finite "
                    "scores. Compute the similarities again."
                )
        return found

    def _copied(self, part: Block, wide: type[np.floating], mapping: mmap.mmap) -> Block:
        """A copy, made strip by strip across the file, whose pages are given back to the system after each strip.

        They stay in its cache, but do not count as ours: a few columns of every row would else hold the whole file.
        """
        found = np.empty(part.shape, wide)
        across = int(np.argmax(np.abs(part.strides)))
        source, target = np.moveaxis(part, across, 0), np.moveaxis(found, across, 0)
        for start in range(0, len(source), STRIP):
            target[start : start + STRIP] = source[start : start + STRIP]
            mapping.madvise(mmap.MADV_DONTNEED)
        return found


@dataclass(frozen=True)
class EnsembleSimilarities:
    """The element-wise mean of several sources, as the published ensembles are made."""

    sources: Sequence[Similarities]

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("an ensemble needs at least one source of similarities; got none. Name one or more.")
        shapes = [source.shape for source in self.sources]
        if len(set(shapes)) > 1:
            odd = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
            raise InputError(
                f"source {odd} of the ensemble has the shape {shapes[odd]}, source 0 has {shapes[0]}; expected one "
                "shape. Evaluate all models on the same images and captions."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """The common shape."""
        return self.sources[0].shape

    def block(self, rows: slice, columns: slice) -> Block:
        """Mean of the sources' blocks, in the widest of their dtypes."""
        total = self.sources[0].block(rows, columns)
        for source in self.sources[1:]:
            total = total + source.block(rows, columns)
        mean: Block = total / total.dtype.type(len(self.sources))
        return mean


@dataclass(frozen=True)
class PartSimilarities:
    """A rectangle of another source: a fold, or a strip of rows."""

    source: Similarities
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the rectangle."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def block(self, rows: slice, columns: slice) -> Block:
        """A rectangle of the rectangle."""
        return self.source.block(_shift(rows, self.rows.start), _shift(columns, self.columns.start))


@dataclass(frozen=True)
class WithDiagonal:
    """A source whose diagonal is one value: 0 as VSE-infinity sets it, -inf to leave every item's own match out."""

    source: Similarities
    value: float

    @property
    def shape(self) -> tuple[int, int]:
        """That of the source."""
        return self.source.shape

    def block(self, rows: slice, columns: slice) -> Block:
        """The source's block, its part of the diagonal overwritten."""
        found = np.array(self.source.block(rows, columns))
        own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        found[own - rows.start, own - columns.start] = self.value
        return found


def open_similarities(path: str) -> MatrixSimilarities:
    """A saved similarity matrix, memory-mapped.

    Args:
        path: local `.npy` of (N images, M captions), float16, float32 or float64, in C or Fortran order.

    Raises:
        InputError: it is not there, not such a file, cut short, or one of the originals' pickled results.
    """
    if files.is_uri(path):
        raise InputError(f"{path!r} cannot be memory-mapped; expected a local .npy file. Copy it to a local disk.")
    not_one = f"{path!r} is not a saved similarity matrix"
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(stream)
            offset, mapping = stream.tell(), mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a .npy file of similarities there.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{not_one}: {error}. Expected .npy, as numpy.save writes a matrix.") from error
    if dtype.hasobject:
        folder, name = os.path.split(os.path.abspath(path))
        raise InputError(
            f"{path!r} holds a Python pickle, as the original programs save results; expected a plain matrix. Convert "
            f"it once: python jobs/convert.py --what legacy --input {path} --output {folder} "
            f"--name {name.removesuffix('.npy')}_matrix.npy"
        )
    try:
        matrix = np.ndarray(shape, dtype, mapping, offset, order="F" if is_fortran else "C")
    except TypeError as error:
        raise InputError(
            f"{path!r} has {os.path.getsize(path)} bytes, too few for {shape} of {dtype}: it is cut short. Copy or "
            "save it again."
        ) from error
    return MatrixSimilarities(matrix, repr(path), mapping)


class NpyHeader(NamedTuple):
    """What the head of a `.npy` says; offset: where its content begins, in bytes."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    offset: int


def npy_header(path: str) -> NpyHeader | None:
    """The header of a local `.npy`; None if the file is not one."""
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return NpyHeader(*read(stream), stream.tell())
    except (OSError, ValueError):
        return None


def holds_pickle(path: str) -> bool:
    """Whether a local file is a pickle, bare or within `.npy`, as the originals save results; nothing is unpickled."""
    header = npy_header(path)
    if header is not None:
        return bool(header.dtype.hasobject)
    try:
        with open(path, "rb") as stream:
            return stream.read(1) == PICKLE_START
    except OSError:
        return False


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
