"""A key bank of any form and size, opened without reading its rows.

A bank is one file, or a folder of files in name order (its own, or those of its `shards` folder), of the forms of
`key_shards`. Rows that cannot be memory-mapped as one matrix (several files, Parquet, compressed HDF5) are written once
into one file beside the bank, which is mapped: the system then keeps in memory what is used, and several processes
share it. Small banks are read into memory instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from xmatch.data import files
from xmatch.data.key_cache import cache_folder, content_hash, load_rows, save_rows
from xmatch.data.key_shards import OPENERS, KeyShard
from xmatch.data.vectors import Rows, check_unique
from xmatch.errors import InputError

IN_MEMORY_BYTES = 1 << 28
"""Banks up to this size are read into memory where they cannot be mapped as they are."""
SHARDS = "shards"
logger = logging.getLogger(__name__)


class KeyBank:
    """Vectors to be searched, with their ids; made by `open_key_bank`.

    Attributes:
        path: of the bank, as it was given.
        shards: its files in row order.
        shape: (N, D).
        dtype: of the rows: float32, float16 or bfloat16.
        info: N rows of what is known but the vectors: `id`, and `group`, `box`, `uri` and others where the files have
            them.
        cache: folder for what is derived from the bank; "": nothing is kept.
    """

    def __init__(self, path: str, shards: Sequence[KeyShard], cache: str, memory_bytes: int) -> None:
        self.path, self.shards, self.cache, self._memory_bytes = path, tuple(shards), cache, memory_bytes
        self.shape = (sum(shard.shape[0] for shard in shards), shards[0].shape[1])
        self.dtype: np.dtype[Any] = shards[0].dtype
        self.info = _one_table(path, self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def ids(self) -> pa.ChunkedArray:
        """N ids, unique."""
        return self.info.column("id")

    @property
    def uris(self) -> pa.ChunkedArray | None:
        """N places of images or nulls; None where the bank has none."""
        return self.info.column("uri") if "uri" in self.info.column_names else None

    @cached_property
    def hash(self) -> str:
        """What identifies the bank's content, 64 hexadecimal digits: of the checksums of its files, in row order.

        Checksums are taken from the records of the run that made the bank (manifest.json, completions/) where it has
        them; other files are read through once, and what was found is kept in the cache.
        """
        return content_hash([path for shard in self.shards for path in shard.files], self.path, self.cache)

    @cached_property
    def rows(self) -> Rows:
        """(N, D), read-only where it is mapped.

        Raises:
            InputError: a file is broken.
        """
        if len(self.shards) == 1 and self.shards[0].mapped is not None:
            return self.shards[0].mapped
        if self.nbytes <= self._memory_bytes:
            return self._gathered()
        found = load_rows(self.cache, self.hash, self.shape, self.dtype)
        if found is None and save_rows(self.cache, self.hash, self.shape, self.dtype, self.blocks()):
            found = load_rows(self.cache, self.hash, self.shape, self.dtype)
        if found is None:
            logger.warning(
                "%s: no place for a copy that can be mapped; %.1f GB in memory", self.path, self.nbytes / 1e9
            )
            return self._gathered()
        return found

    def blocks(self) -> Iterator[Rows]:
        """The rows in order, a block at a time, straight from the bank's files."""
        for shard in self.shards:
            yield from shard.blocks()

    def _gathered(self) -> Rows:
        rows, start = np.empty(self.shape, self.dtype), 0
        for block in self.blocks():
            rows[start : start + len(block)] = block
            start += len(block)
        return rows


def open_key_bank(path: str, cache: str | None = None, memory_bytes: int = IN_MEMORY_BYTES) -> KeyBank:
    """Open a key bank.

    Args:
        path: a file, a folder of files, or a run's folder with `shards`; local or a URI.
        cache: local folder for what is derived from banks; None: beside the bank, where that can be written.
        memory_bytes: size up to which a bank that cannot be mapped is read into memory.

    Raises:
        InputError: nothing is there, a file is broken, widths or number formats differ, or ids repeat or are null.
    """
    parts = list_shards(path)
    shards = [OPENERS[os.path.splitext(part)[1]](part) for part in parts]
    for shard in shards:
        if (shard.shape[1], shard.dtype) != (shards[0].shape[1], shards[0].dtype):
            raise InputError(
                f"{shard.path!r} holds vectors of width {shard.shape[1]}, {shard.dtype}, but {shards[0].path!r} of "
                f"width {shards[0].shape[1]}, {shards[0].dtype}: vectors of one bank must have one width and dtype."
            )
    return KeyBank(path, shards, cache_folder(path, cache), memory_bytes)


def list_shards(path: str) -> list[str]:
    """The files of a bank, in row order.

    Raises:
        InputError: there is none.
    """
    suffixes = list(OPENERS)
    if not files.is_folder(path):
        if path.endswith(tuple(suffixes)):
            return [path]
        if files.exists(path):
            raise InputError(f"{path!r} is no key bank: expected a folder, or a file ending in {', '.join(suffixes)}.")
        raise InputError(f"{path!r} does not exist; expected a key bank there.")
    for suffix in suffixes:
        for folder in (path, files.join(path, SHARDS)):
            # a run's own tables lie beside its shards folder, and are no part of the bank
            is_beside = folder == path and suffix == ".parquet" and files.is_folder(files.join(path, SHARDS))
            found = [] if is_beside else files.list_files(folder, suffix)
            if found:
                return found
    raise InputError(f"no file of vectors ({', '.join(suffixes)}) in {path!r}; make a bank with jobs/embed.py.")


def check_copy(bank: KeyBank) -> None:
    """Read a bank through and compare it with the rows that searches map, which may be a copy in the cache.

    Raises:
        InputError: they differ, so the copy is damaged; names the first row.
    """
    start = 0
    for block in bank.blocks():
        copy = np.ascontiguousarray(bank.rows[start : start + len(block)]).view(np.uint8)
        differing = np.flatnonzero((copy != np.ascontiguousarray(block).view(np.uint8)).any(1))
        if len(differing):
            raise InputError(
                f"{bank.path!r}: row {start + int(differing[0])} of the copy in {bank.cache!r} differs from the bank's "
                "files, so it is damaged. Delete that folder; what it holds is made again."
            )
        start += len(block)


def check_finite(rows: Rows, bank: KeyBank, start: int = 0) -> None:
    """Check that rows hold neither NaN nor infinity.

    Args:
        rows: some of the bank's.
        bank: for the names.
        start: number of the first of them.

    Raises:
        InputError: a row does; names its number and id.
    """
    broken = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(broken):
        row = start + int(broken[0])
        raise InputError(
            f"{bank.path!r}: row {row}, id {bank.ids[row].as_py()!r}, holds NaN or infinity, but exact search needs "
            "finite vectors. Drop such rows or make them again."
        )


def _one_table(path: str, shards: Sequence[KeyShard]) -> pa.Table:
    tables = []
    for shard in shards:
        table = shard.info.replace_schema_metadata(None)
        kind = table.schema.field("id").type if "id" in table.column_names else None
        if kind not in (pa.string(), pa.large_string()):
            raise InputError(f"{shard.path!r}: expected a column 'id' of strings, got {kind or 'no such column'}.")
        if table.column("id").null_count or table.num_rows != shard.shape[0]:
            raise InputError(f"{shard.path!r}: expected an id for each of {shard.shape[0]} vectors, some are null.")
        tables.append(table.set_column(table.column_names.index("id"), "id", table.column("id").cast(pa.string())))
    try:
        info = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{path!r}: its files have columns of different types: {error}. Make them alike.") from error
    check_unique(info.column("id"), path)
    return info
