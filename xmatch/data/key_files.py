"""Key banks as the originals keep them: {SET}.hdf5 with `keys`, {SET}.ids and {SET}.path.

`keys` is float32 (N, D), contiguous, without chunks, compression or attributes; line i of .ids and .path belongs to
row i (golden `keys_hdf5_layout`). Read as they lie, `keys` may also be float16, or uint16 with the attribute
dtype=bfloat16, and chunked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa

from xmatch.data import files
from xmatch.data.image_sets import split_universal_id, universal_id
from xmatch.data.vectors import BFLOAT16, DTYPE_KEY, DTYPES, Rows, make_vectors, matrix
from xmatch.errors import InputError

SUFFIXES = (".hdf5", ".h5")


class KeysLayout(NamedTuple):
    """How the `keys` of a file lie in it.

    Attributes:
        shape: (N, D).
        dtype: number format, native byte order.
        offset: byte of the file at which they begin, where they lie in one piece as they are in memory; else None.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int | None


def export_keys(table: pa.Table, folder: str) -> list[str]:
    """Write a key bank in the originals' form, a file triple for each image set in it.

    Args:
        table: a bank with universal ids.
        folder: a local folder.

    Returns:
        The set names written, in the order of the bank.
    """
    os.makedirs(folder, exist_ok=True)
    pairs = [split_universal_id(uid) for uid in table.column("id").to_pylist()]
    uris = table.column("uri").to_pylist()
    vectors = matrix(table)
    names = list(dict.fromkeys(set_name for set_name, _ in pairs))
    for set_name in names:
        rows = [row for row, (name, _) in enumerate(pairs) if name == set_name]
        temporary = os.path.join(folder, f"{set_name}.hdf5{files.TEMPORARY_MARK}{os.getpid()}")
        with h5py.File(temporary, "w") as store:
            store.create_dataset("keys", data=np.asarray(vectors[rows], dtype=np.float32))
        os.replace(temporary, os.path.join(folder, f"{set_name}.hdf5"))
        ids = "".join(f"{pairs[row][1]}\n" for row in rows)
        places = "".join(f"{uris[row] if uris[row] is not None else pairs[row][1]}\n" for row in rows)
        files.write_bytes(os.path.join(folder, f"{set_name}.ids"), ids.encode())
        files.write_bytes(os.path.join(folder, f"{set_name}.path"), places.encode())
    return names


def import_keys(folder: str, set_name: str) -> pa.Table:
    """Read a set of the originals' keys as a key bank with universal ids.

    Raises:
        InputError: a file is missing or corrupt, or the counts differ; names them.
    """
    keys = read_keys(os.path.join(folder, f"{set_name}.hdf5"))
    ids, paths = read_names(folder, set_name, len(keys))
    return make_vectors(ids, keys, uris=paths)


def read_names(folder: str, set_name: str, count: int) -> tuple[list[str], list[str]]:
    """Universal ids and places of the images of a set.

    Args:
        folder: of the files.
        set_name: of the set.
        count: rows of its keys.

    Raises:
        InputError: a file is missing, or the counts differ.
    """
    ids = _lines(os.path.join(folder, f"{set_name}.ids"))
    path_file = os.path.join(folder, f"{set_name}.path")
    paths = _lines(path_file) if os.path.exists(path_file) else list(ids)  # as the original does
    if not count == len(ids) == len(paths):
        raise InputError(
            f"{folder!r}, set {set_name!r}: {count} keys, {len(ids)} ids and {len(paths)} paths; row i of all "
            "three must belong together. Extract the keys again."
        )
    return [universal_id(set_name, name) for name in ids], paths


def read_keys(path: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The `keys` dataset of an HDF5 file, (N, D) float32.

    Raises:
        InputError: the file is missing, corrupt, or has no such dataset of floating-point numbers.
    """
    with _Keys(path) as keys:
        if not np.issubdtype(keys.dtype, np.floating):
            raise InputError(f"{path!r}: 'keys' is a matrix of {keys.dtype}; expected floating-point numbers.")
        found: np.ndarray[tuple[int, int], np.dtype[np.float32]] = keys[:].astype(np.float32)
        return found


def keys_layout(path: str) -> KeysLayout:
    """How the keys of an HDF5 file lie in it; reads no row.

    Raises:
        InputError: the file is missing, corrupt, or `keys` is no matrix of float32, float16 or bfloat16.
    """
    with _Keys(path) as keys:
        stored = keys.dtype
        is_bfloat16 = stored == np.uint16 and _text(keys.attrs.get(DTYPE_KEY)) == BFLOAT16.name
        dtype = BFLOAT16 if is_bfloat16 else stored.newbyteorder("=")
        if dtype not in DTYPES:
            raise InputError(
                f"{path!r}: 'keys' is a matrix of {stored}; expected float32, float16, or uint16 with the attribute "
                f"{DTYPE_KEY}={BFLOAT16.name}. jobs/convert.py import_keys rounds other floating-point keys to float32."
            )
        is_plain = keys.chunks is None and stored.isnative
        return KeysLayout(keys.shape, dtype, keys.id.get_offset() if is_plain else None)


def key_blocks(path: str, layout: KeysLayout, rows: int) -> Iterator[Rows]:
    """The keys of a file, `rows` at a time, in order."""
    with _Keys(path) as keys:
        for start in range(0, layout.shape[0], rows):
            block = keys[start : start + rows]
            yield block.view(BFLOAT16) if layout.dtype == BFLOAT16 else block.astype(layout.dtype, copy=False)


class _Keys:
    """The open `keys` dataset of a file; whatever h5py cannot read is an InputError that names the file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Any:
        if not os.path.exists(self.path):
            raise InputError(f"{self.path!r} does not exist; expected the keys of an image set.")
        try:
            self.store = h5py.File(self.path, "r")
        except OSError as error:
            raise self._broken(error) from error
        try:
            if isinstance(self.store.get("keys", getlink=True), h5py.ExternalLink):
                raise self._leads_out()
            if "keys" not in self.store or getattr(self.store["keys"], "ndim", 0) != 2:
                found = sorted(self.store)
                raise InputError(f"{self.path!r} has no two-dimensional dataset 'keys'; it holds {found}.")
            keys = self.store["keys"]
            if keys.external or keys.is_virtual or keys.file.filename != self.store.filename:
                raise self._leads_out()
            return keys
        except BaseException:
            self.store.close()
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.store.close()
        if isinstance(error, OSError):
            raise self._broken(error) from error
        if isinstance(error, MemoryError):
            raise InputError(f"{self.path!r}: {error}. 'keys' is larger than this machine's memory.") from error

    def _leads_out(self) -> InputError:
        return InputError(
            f"{self.path!r}: 'keys' lies in another file, which is not read. Copy its rows into this one."
        )

    def _broken(self, error: OSError) -> InputError:
        return InputError(f"{self.path!r} is not a whole HDF5 file ({error}); extract the keys again.")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _lines(path: str) -> list[str]:
    text = files.read_text(path)
    return text.removesuffix("\n").split("\n") if text else []
