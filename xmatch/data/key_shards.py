"""One file of a key bank, in any form: what is known of its rows, and the rows themselves.

.arrow                         Arrow IPC; memory-mapped where it is local
.parquet                       the same columns; `vector` may be a list of one length instead of a fixed-size list
.hdf5, .h5 + .ids + .path      the originals' keys; memory-mapped where they lie in one piece
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmatch.data import files, key_files
from xmatch.data.plain_columns import require_plain
from xmatch.data.vectors import (
    BFLOAT16,
    Rows,
    list_array,
    open_arrow,
    require_vector_column,
    vector_dtype,
    vector_field,
)
from xmatch.errors import InputError

BLOCK_ROWS = 1 << 14


class KeyShard(NamedTuple):
    """One file of a bank.

    Attributes:
        path: of the file.
        files: every file that decides its content, the first is `path`.
        shape: (N, D).
        dtype: number format of the rows.
        info: the other columns: `id`, and what else the file has, such as `uri` and `group`.
        mapped: the rows as one memory-mapped matrix; None where the form does not allow it.
        blocks: the rows in order, a block of at most BLOCK_ROWS at a time.
    """

    path: str
    files: tuple[str, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    info: pa.Table
    mapped: Rows | None
    blocks: Callable[[], Iterator[Rows]]


def open_arrow_shard(path: str) -> KeyShard:
    """A file in Arrow IPC.

    Raises:
        InputError: it is missing, broken, or no table of vectors.
    """
    reader = open_arrow(path)
    require_vector_column(reader.schema, path)
    field = reader.schema.field("vector")
    dtype, width = vector_dtype(field, path), field.type.list_size

    def parts() -> Iterator[Rows]:
        again = open_arrow(path)
        for number in range(again.num_record_batches):
            yield _values(again.get_batch(number).column("vector"), width, dtype, path)

    info = open_arrow(path, [place for place, name in enumerate(reader.schema.names) if name != "vector"]).read_all()
    is_mappable = not files.is_uri(path) and reader.num_record_batches == 1
    shape = (info.num_rows, width)
    return KeyShard(path, (path,), shape, dtype, info, next(parts()) if is_mappable else None, lambda: _cut(parts()))


def open_parquet_shard(path: str) -> KeyShard:
    """A file in Parquet.

    Raises:
        InputError: it is missing, broken, no table of vectors, or its vectors differ in length.
    """
    file = _parquet_file(path)
    schema = file.schema_arrow
    kind = schema.field("vector").type if "vector" in schema.names else pa.null()
    if not any(is_list(kind) for is_list in (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)):
        raise InputError(f"{path!r} is no table of vectors: it has no column 'vector' of lists of numbers.")
    dtype = vector_dtype(schema.field("vector"), path)
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(file, path)

    def parts() -> Iterator[Rows]:
        with _whole(path):
            for batch in _parquet_file(path).iter_batches(BLOCK_ROWS, columns=["vector"]):
                yield _values(batch.column("vector"), width, dtype, path)

    with _whole(path):
        info = file.read([name for name in schema.names if name != "vector"])
    return KeyShard(path, (path,), (file.metadata.num_rows, width), dtype, info, None, lambda: _cut(parts()))


def open_hdf5_shard(path: str) -> KeyShard:
    """A set of the originals' keys; ids become universal ones, `SET/IMAGE`.

    Raises:
        InputError: a file is missing or broken, the counts differ, or it is not a local file.
    """
    if files.is_uri(path):
        raise InputError(f"{path!r}: HDF5 keys are read from local files only. Copy the set to a local folder.")
    layout = key_files.keys_layout(path)
    folder, name = os.path.split(path)
    set_name, suffix = os.path.splitext(name)
    ids, places = key_files.read_names(folder, set_name, layout.shape[0])
    info = pa.table({"id": pa.array(ids, pa.string()), "uri": pa.array(places, pa.string())})
    beside = [path.removesuffix(suffix) + other for other in (".ids", ".path")]
    mapped = None
    if layout.offset is not None and layout.shape[0] * layout.shape[1]:
        mapped = np.memmap(path, layout.dtype, "r", layout.offset, layout.shape)
    every = (path, *(place for place in beside if os.path.exists(place)))
    return KeyShard(
        path, every, layout.shape, layout.dtype, info, mapped, lambda: key_files.key_blocks(path, layout, BLOCK_ROWS)
    )


OPENERS: dict[str, Callable[[str], KeyShard]] = {
    ".arrow": open_arrow_shard,
    ".parquet": open_parquet_shard,
    **dict.fromkeys(key_files.SUFFIXES, open_hdf5_shard),
}


def vector_table(info: pa.Table, rows: Rows) -> pa.Table:
    """The table of vectors of some rows: what is known of them, and the vectors.

    Args:
        info: N rows; `id` and other columns but `vector`.
        rows: (N, D).
    """
    array, field = list_array(rows), vector_field(rows.shape[1], rows.dtype)
    return info.add_column(min(2, info.num_columns), field, array)


def _values(array: pa.Array, width: int, dtype: np.dtype[Any], path: str) -> Rows:
    """(n, D) of a column of lists, a view where it can be."""
    if array.null_count:
        raise InputError(f"{path!r}: 'vector' is null in {array.null_count} rows. Leave these rows out.")
    flat = array.flatten()
    is_ragged = not pa.types.is_fixed_size_list(array.type) and not np.all(np.diff(array.offsets.to_numpy()) == width)
    if is_ragged or flat.null_count:
        raise InputError(
            f"{path!r}: the lists of column 'vector' differ in length, or hold nulls; every row must have {width} "
            "numbers, as the first has."
        )
    values: Rows = flat.to_numpy(zero_copy_only=False)
    return (values.view(BFLOAT16) if dtype == BFLOAT16 else values).reshape(len(array), width)


def _cut(parts: Iterator[Rows]) -> Iterator[Rows]:
    for part in parts:
        for start in range(0, len(part), BLOCK_ROWS):
            yield part[start : start + BLOCK_ROWS]


def _parquet_file(path: str) -> pq.ParquetFile:
    filesystem, inside = files.filesystem_of(path)
    with _whole(path):
        found = pq.ParquetFile(filesystem.open_input_file(inside))
        require_plain(found.schema_arrow, path)
        return found


def _first_length(file: pq.ParquetFile, path: str) -> int:
    with _whole(path):
        for batch in file.iter_batches(1, columns=["vector"]):
            if batch.num_rows and batch.column("vector")[0].is_valid:
                return len(batch.column("vector")[0])
    raise InputError(f"{path!r} has no vector, so their width is not known. Leave the file out.")


@contextmanager
def _whole(path: str) -> Iterator[None]:
    """Whatever pyarrow cannot read of a Parquet file is an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a table of vectors there.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path!r} is not a whole Parquet file: {error}. It may be truncated; make it again."
        ) from error
