"""The originals' saved results, mapped where they lie: a pickled {"npts", "sims"}, within `.npy` or bare.

Nothing is unpickled in the usual sense: `PlainUnpickler` builds records and imports no name. The long run of bytes that
is the matrix is not even read: its place in the file is noted, and mapped afterwards.
"""

from __future__ import annotations

import io
import mmap
import os
from typing import Any

import numpy as np

from xmatch.data.legacy_pickle import FAILURES, NUMBER_DTYPE, PlainUnpickler, Record, convert_legacy
from xmatch.evaluation.similarities import MatrixSimilarities, npy_header, open_similarities

LONG = 1 << 20
"""Bytes in one read from which they are skipped."""


class SkippingFile(io.FileIO):
    """A file whose long reads are answered by zeros of that length, which take no memory; their places are kept."""

    def __init__(self, path: str, start: int) -> None:
        super().__init__(path, "rb")
        self.seek(start)
        self.skipped: list[tuple[bytes, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's, but for long reads."""
        if size is None or size < LONG:
            return super().read(-1 if size is None else size) or b""
        place = self.tell()
        end = self.seek(min(place + size, os.fstat(self.fileno()).st_size))
        zeros = bytes(end - place)
        self.skipped.append((zeros, place))
        return zeros


def open_original(path: str, folder: str, name: str) -> MatrixSimilarities:
    """Saved results of an original program, memory-mapped.

    Args:
        path: local file.
        folder: where a plain copy is made if the matrix cannot be mapped where it lies (of Python 2, or small).
        name: of that copy, without suffix.

    Raises:
        InputError: the file is broken, asks for another class, or holds no similarities.
    """
    header = npy_header(path)
    with SkippingFile(path, header.offset if header else 0) as source:
        try:
            found = _matrix_of(PlainUnpickler(source, path, "latin1").load())  # type: ignore[arg-type]
            place = next((place for zeros, place in source.skipped if found and zeros is found[3]), None)
        except FAILURES:
            found = place = None
    if found is None or place is None:
        readable = os.path.join(folder, f"{name}.npy")
        if not os.path.exists(readable):
            convert_legacy(path, readable)
        return open_similarities(readable)
    shape, dtype, is_fortran, _ = found
    with open(path, "rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    matrix: Any = np.ndarray(shape, dtype, mapping, place, order="F" if is_fortran else "C")
    return MatrixSimilarities(matrix, repr(path), mapping)


def _matrix_of(value: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool, bytes] | None:
    """Shape, dtype, order and bytes of `sims`; None where there is nothing of that form."""
    while isinstance(value, Record) and value.kind == "array" and isinstance(value.state[4], list):
        value = value.state[4][0]  # an array of one object
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    sims = value.get("sims") if isinstance(value, dict) else None
    if not isinstance(sims, Record) or sims.kind != "array":
        return None
    _, shape, dtype, is_fortran, content = sims.state
    code = f"{dtype.state[1].replace('|', '')}{dtype.given[0].lstrip('<>|=')}"
    rows = value.get("npts", shape[0])
    fits = isinstance(content, bytes) and len(shape) == 2 and rows == shape[0] and NUMBER_DTYPE.fullmatch(code)
    if not fits or len(content) != int(np.prod(shape)) * np.dtype(code).itemsize:
        return None
    return tuple(int(length) for length in shape), np.dtype(code), bool(is_fortran), content
