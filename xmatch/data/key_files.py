"""Key banks as the originals keep them: {SET}.hdf5 with `keys`, {SET}.ids and {SET}.path.

`keys` is float32 (N, D), contiguous, without chunks, compression or attributes; line i of .ids and .path belongs to
row i (golden `keys_hdf5_layout`).
"""

from __future__ import annotations

import os

import h5py
import numpy as np
import pyarrow as pa

from xmatch.data import files
from xmatch.data.image_sets import split_universal_id, universal_id
from xmatch.data.vectors import make_vectors, matrix
from xmatch.errors import InputError


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
    ids = _lines(os.path.join(folder, f"{set_name}.ids"))
    path_file = os.path.join(folder, f"{set_name}.path")
    paths = _lines(path_file) if os.path.exists(path_file) else list(ids)  # as the original does
    if not len(keys) == len(ids) == len(paths):
        raise InputError(
            f"{folder!r}, set {set_name!r}: {len(keys)} keys, {len(ids)} ids and {len(paths)} paths; row i of all "
            "three must belong together. Extract the keys again."
        )
    return make_vectors([universal_id(set_name, name) for name in ids], keys, uris=paths)


def read_keys(path: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The `keys` dataset of an HDF5 file, (N, D) float32.

    Raises:
        InputError: the file is missing, corrupt, or has no such dataset of floating-point numbers.
    """
    if not os.path.exists(path):
        raise InputError(f"{path!r} does not exist; expected the keys of an image set.")
    try:
        with h5py.File(path, "r") as store:
            if "keys" not in store or store["keys"].ndim != 2:
                raise InputError(f"{path!r} has no two-dimensional dataset 'keys'; it holds {sorted(store)}.")
            if not np.issubdtype(store["keys"].dtype, np.floating):
                raise InputError(
                    f"{path!r}: 'keys' is a matrix of {store['keys'].dtype}; expected floating-point numbers."
                )
            found: np.ndarray[tuple[int, int], np.dtype[np.float32]] = store["keys"][:].astype(np.float32)
            return found
    except OSError as error:
        raise InputError(f"{path!r} is not a whole HDF5 file ({error}); extract the keys again.") from error


def _lines(path: str) -> list[str]:
    text = files.read_text(path)
    return text.removesuffix("\n").split("\n") if text else []
