"""What is derived from a key bank and kept beside it: checksums, and rows as one file that can be mapped.

    <bank>/cache/checksums.json              of files that no run's record vouches for, by size and time of change
    <bank>/cache/rows-<hash>.npy             all rows (bfloat16 as uint16), of the bank whose content has that hash

Everything here may be deleted at any time. Files are written under a temporary name and renamed, so several processes
may make the same one at once: the last one wins, with equal bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from xmatch.data import files
from xmatch.data.vectors import BFLOAT16, Rows
from xmatch.errors import InputError

CACHE = "cache"
CHECKSUMS = "checksums.json"
HASH_DIGITS = 32
"""Digits of a bank's hash in file names."""
ABANDONED_S = 3600.0
"""A temporary file that has not grown for so long belongs to a writer that was killed."""
logger = logging.getLogger(__name__)


def bank_root(path: str) -> str:
    """The folder that holds a bank's records: the run's folder where `path` is its `shards`, else `path` itself."""
    place = _absolute(path)
    return place.removesuffix("/shards") if place.endswith("/shards") else place


def cache_folder(path: str, given: str | None) -> str:
    """The folder for what is derived from a bank; "" where nothing can be kept.

    Args:
        path: of the bank.
        given: local folder for what is derived from many banks; None: beside the bank, if it is local and writable.

    Raises:
        InputError: `given` is a URI.
    """
    root = bank_root(path)
    if given is not None:
        if files.is_uri(given):
            raise InputError(f"the cache of key banks must be a local folder, got {given!r}.")
        return files.join(given, f"{root.rsplit('/', 1)[-1]}-{hashlib.sha256(root.encode()).hexdigest()[:12]}")
    folder = root if os.path.isdir(root) else os.path.dirname(root)
    if files.is_uri(path) or not os.access(folder, os.W_OK):
        return ""
    return files.join(root, CACHE) if os.path.isdir(root) else f"{root}.{CACHE}"


def content_hash(paths: Sequence[str], bank: str, cache: str) -> str:
    """What identifies the content of a bank's files, in their order; 64 hexadecimal digits.

    A checksum in a run's records is believed if the record is no older than the file; so is one in the cache if the
    file has kept its size and time of change. Others are computed, and kept in the cache.

    Args:
        paths: the files, in row order.
        bank: path of the bank.
        cache: its cache folder, or "".
    """
    records, known = _Records(bank_root(bank)), _read_checksums(cache)
    found, is_new = [], False
    for path in paths:
        info = _info(path)
        name, stamp = path.rsplit("/", 1)[-1], [info.size, info.mtime_ns]
        checksum = records.checksum(path, info.mtime_ns)
        if checksum is None:
            entry = known.get(name)
            if not isinstance(entry, list) or entry[:2] != stamp:
                known[name], is_new = [*stamp, files.sha256(path)], True
            checksum = known[name][2]
        found.append(checksum)
    if is_new and cache:
        keep(cache, lambda: files.write_json(files.join(cache, CHECKSUMS), known))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def check_records(paths: Sequence[str], bank: str) -> int:
    """Read files through and compare them with the checksums that the bank's run noted, whatever their age.

    Args:
        paths: the files.
        bank: path of the bank.

    Returns:
        How many files had a record.

    Raises:
        InputError: a file is not what the run wrote; names it.
    """
    records, checked = _Records(bank_root(bank)), 0
    for path in paths:
        expected = records.checksum(path, 0)
        found = files.sha256(path) if expected else None
        if found != expected:
            raise InputError(
                f"{path!r} is not what the run that made it wrote: its SHA-256 is {found}, the run noted {expected}. "
                "The file was damaged or replaced; make the bank again, or remove its completions/ and manifest.json."
            )
        checked += expected is not None
    return checked


def load_rows(cache: str, bank_hash: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Rows | None:
    """The rows that `save_rows` kept, memory-mapped; None where they are not there, cut off, or of another form."""
    path = _rows_path(cache, bank_hash)
    if not cache or not os.path.exists(path):
        return None
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):  # cut off, or no .npy at all
        return None
    if rows.shape != shape or rows.dtype != _stored(dtype):
        return None
    return np.asarray(rows).view(dtype)


def save_rows(cache: str, bank_hash: str, shape: tuple[int, int], dtype: np.dtype[Any], blocks: Iterable[Rows]) -> bool:
    """Write a bank's rows as one .npy file; whether that was possible.

    Args:
        cache: folder.
        bank_hash: of the bank's content.
        shape: (N, D).
        dtype: of the rows.
        blocks: the rows, in order.
    """

    def write() -> None:
        with files.open_atomic(_rows_path(cache, bank_hash)) as sink:
            header = {"descr": np.lib.format.dtype_to_descr(_stored(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(sink, header)
            for block in blocks:
                sink.write(np.ascontiguousarray(block).view(np.uint8).data)

    return bool(cache) and keep(cache, write)


def prune_cache(cache: str, bank_hash: str) -> int:
    """Remove what belongs to an earlier content of the bank; the bytes freed."""
    freed = 0
    for path in files.list_files(cache) if cache else []:
        kind, _, rest = os.path.basename(path).partition("-")
        if kind in ("rows", "packed") and not rest.startswith(bank_hash[:HASH_DIGITS]):
            freed += os.path.getsize(path)
            os.unlink(path)
    return freed


class _Records:
    """Checksums that a run noted of its shards: in completions/, or in manifest.json where these were not copied."""

    def __init__(self, root: str) -> None:
        self.root = root
        path = files.join(root, "manifest.json")
        is_there = files.is_folder(root) and files.exists(path)
        self.manifest: dict[str, Any] = files.read_json(path).get("shards", {}) if is_there else {}
        self.manifest_time = _info(path).mtime_ns if is_there else 0

    def checksum(self, path: str, changed_ns: int) -> str | None:
        """SHA-256 of a file by a record that is no older than the file itself."""
        folder, _, name = _absolute(path).rpartition("/")
        if folder != files.join(self.root, "shards"):
            return None
        stem = name.rsplit(".", 1)[0]
        marker = files.join(self.root, "completions", f"{stem}.json")
        if files.exists(marker):
            is_later = _info(marker).mtime_ns >= changed_ns
            record = files.read_json(marker) if is_later else {}
        else:
            record = self.manifest.get(stem, {}) if self.manifest_time >= changed_ns else {}
        return record.get("sha256")


def _absolute(path: str) -> str:
    return path.rstrip("/") if files.is_uri(path) else os.path.abspath(path)


def _info(path: str) -> pafs.FileInfo:
    filesystem, inside = files.filesystem_of(path)
    return filesystem.get_file_info(inside)


def _read_checksums(cache: str) -> dict[str, Any]:
    path = files.join(cache, CHECKSUMS) if cache else ""
    try:
        known = files.read_json(path) if path and files.exists(path) else {}
    except InputError:  # damaged: computed anew
        known = {}
    return known if isinstance(known, dict) else {}


def _rows_path(cache: str, bank_hash: str) -> str:
    return files.join(cache, f"rows-{bank_hash[:HASH_DIGITS]}.npy")


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint16) if dtype == BFLOAT16 else dtype


def keep(cache: str, write: Callable[[], None]) -> bool:
    """Write something into a cache folder; where that fails, one line of the log says so, and the work goes on.

    Args:
        cache: folder; made if need be.
        write: does it, atomically.

    Returns:
        Whether it was written.
    """
    try:
        os.makedirs(cache, exist_ok=True)
        for name in os.listdir(cache):
            path = os.path.join(cache, name)
            if files.TEMPORARY_MARK in name and time.time() - os.stat(path).st_mtime > ABANDONED_S:
                os.unlink(path)
        write()
    except (InputError, OSError) as error:
        logger.warning("nothing is kept in %s: %s", cache, error)
        return False
    return True
