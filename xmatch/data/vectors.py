"""The one table of vectors: key banks, image features, region features and text embeddings are all this table.

Arrow, one row per vector, in uncompressed Arrow IPC files that are memory-mapped when they are read:

    id      string                       stable, unique within a bank ("SET/image" for images)
    group   string, may be null          rows with one group are views of one thing (several crops of one image)
    vector  fixed_size_list<float>[D]    float32, float16, or uint16 with the field metadata dtype=bfloat16
    box     fixed_size_list<float>[4]    may be null; x1, y1, x2, y2 in pixels
    uri     string, may be null          where the image is, as it was read
    image_size  fixed_size_list<float>[2]    width and height of the image in pixels; a column only where known

A bank is one `.arrow` file or a folder of them; its row order is the files' name order, and the row number is the
voken id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data import files
from xmatch.data.plain_columns import require_plain
from xmatch.errors import InputError

SUFFIX = ".arrow"
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
"""Arrow has no such type: its 16 bits are kept as uint16, and the field says what they are."""
DTYPES: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
DTYPE_KEY = "dtype"
"""Metadata key of a field of uint16 that holds bfloat16; the name of the HDF5 attribute too."""

IMAGE_SIZE = pa.field("image_size", pa.list_(pa.float32(), 2))
"""The column that only tables with known image sizes have."""

Rows = npt.NDArray[Any]
"""A matrix (N, D) of one of DTYPES."""


def vector_field(width: int, dtype: np.dtype[Any]) -> pa.Field:
    """The field of vectors of a width and number format."""
    is_bfloat16 = dtype == BFLOAT16
    kind = pa.list_(pa.uint16() if is_bfloat16 else pa.from_numpy_dtype(dtype), width)
    metadata = {DTYPE_KEY: BFLOAT16.name} if is_bfloat16 else None
    return pa.field("vector", kind, nullable=False, metadata=metadata)


def vector_schema(width: int, dtype: np.dtype[Any] = DTYPES[0]) -> pa.Schema:
    """The schema of a bank of `width`-dimensional vectors; `dtype` is one of DTYPES."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            ("group", pa.string()),
            vector_field(width, dtype),
            ("box", pa.list_(pa.float32(), 4)),
            ("uri", pa.string()),
        ]
    )


def vector_dtype(field: pa.Field, where: str) -> np.dtype[Any]:
    """The number format of a field of lists of numbers.

    Raises:
        InputError: it is none of DTYPES; names `where`.
    """
    kind = field.type.value_type if hasattr(field.type, "value_type") else field.type
    for dtype in DTYPES[:2]:
        if kind == pa.from_numpy_dtype(dtype):
            return dtype
    if kind == pa.uint16() and (field.metadata or {}).get(DTYPE_KEY.encode()) == BFLOAT16.name.encode():
        return BFLOAT16
    raise InputError(
        f"{where!r}: column {field.name!r} must hold lists of float32, of float16, or of uint16 with the field "
        f"metadata {DTYPE_KEY}={BFLOAT16.name}, got {field.type}. Convert it, or make the vectors again."
    )


def list_array(rows: Rows) -> pa.FixedSizeListArray:
    """A matrix as an Arrow array of its rows, without a copy where it is contiguous."""
    flat = np.ascontiguousarray(rows).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.view(np.uint16) if rows.dtype == BFLOAT16 else flat),
        type=vector_field(rows.shape[1], rows.dtype).type,
    )


def make_vectors(
    ids: Sequence[str],
    vectors: Rows,
    *,
    groups: Sequence[str | None] | None = None,
    boxes: npt.NDArray[np.float32] | None = None,
    uris: Sequence[str | None] | None = None,
    image_sizes: npt.NDArray[np.float32] | None = None,
) -> pa.Table:
    """A table of vectors.

    Args:
        ids: N stable ids.
        vectors: (N, D), float32, float16 or bfloat16.
        groups: N group ids or nulls.
        boxes: (N, 4) float32, pixels.
        uris: N places or nulls.
        image_sizes: (N, 2) float32, width and height of the images in pixels; null: not known, no column.

    Raises:
        InputError: the counts differ, or `vectors` is not a matrix of float32, float16 or bfloat16.
    """
    if vectors.ndim != 2 or vectors.dtype not in DTYPES:
        raise InputError(f"vectors must be (N, D) float32 or float16 or bfloat16, got {vectors.shape} {vectors.dtype}.")
    count, width = vectors.shape
    columns = {"ids": ids, "groups": groups, "boxes": boxes, "uris": uris, "image sizes": image_sizes}
    for name, column in columns.items():
        if column is not None and len(column) != count:
            raise InputError(f"{count} vectors came with {len(column)} {name}; there must be one for each vector.")
    nulls = pa.nulls(count, pa.string())
    flat_boxes = pa.nulls(count, pa.list_(pa.float32(), 4))
    if boxes is not None:
        flat_boxes = pa.FixedSizeListArray.from_arrays(pa.array(boxes.astype(np.float32).reshape(-1)), 4)
    table = pa.table(
        [
            pa.array(list(ids), pa.string()),
            nulls if groups is None else pa.array(list(groups), pa.string()),
            list_array(vectors),
            flat_boxes,
            nulls if uris is None else pa.array(list(uris), pa.string()),
        ],
        schema=vector_schema(width, vectors.dtype),
    )
    if image_sizes is None:
        return table
    flat_sizes = pa.array(image_sizes.astype(np.float32).reshape(-1))
    return table.append_column(IMAGE_SIZE, pa.FixedSizeListArray.from_arrays(flat_sizes, 2))


def matrix(table: pa.Table, column: str = "vector") -> Rows:
    """A fixed-size-list column as an (N, D) array of its own dtype; a view where the column is one chunk."""
    chunked = table.column(column)
    width: int = chunked.type.list_size
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], chunked.type)
    values: Rows = array.flatten().to_numpy(zero_copy_only=False)
    return values.view(vector_dtype(table.schema.field(column), column)).reshape(len(table), width)


def check_vectors(table: pa.Table, where: str) -> None:
    """Check that a table is a table of vectors with unique ids.

    Raises:
        InputError: a column is missing or of another type, an id repeats, or a vector is null; names `where`.
    """
    missing = {"id", "vector"} - set(table.column_names)
    if missing:
        raise InputError(f"{where!r} is no table of vectors: column {sorted(missing)[0]!r} is missing.")
    kind = table.schema.field("vector").type
    if not pa.types.is_fixed_size_list(kind):
        raise InputError(f"{where!r}: column 'vector' must be a fixed-size list, got {kind}.")
    vector_dtype(table.schema.field("vector"), where)
    if table.column("vector").null_count or table.column("id").null_count:
        raise InputError(f"{where!r}: 'id' and 'vector' must not be null.")
    check_unique(table.column("id"), where)


def check_unique(ids: pa.ChunkedArray, where: str) -> None:
    """Check that no id comes twice.

    Raises:
        InputError: some do; names three of them.
    """
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    repeated = [row["values"].as_py() for row in ids.value_counts() if row["counts"].as_py() > 1][:3]
    raise InputError(f"{where!r}: ids must be unique, but {', '.join(map(repr, repeated))} repeat.")


def write_vectors(path: str, table: pa.Table) -> None:
    """Write a table of vectors atomically as one Arrow IPC file."""
    with files.open_atomic(path) as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_vectors(path: str, fetch: Callable[[str], str] = str) -> pa.Table:
    """A bank of vectors: one `.arrow` file, or all of a folder (or of its `shards` folder) in name order.

    Local files are memory-mapped: rows are read from disk when they are used.

    Args:
        path: of the bank.
        fetch: from a file of it to where that is read; may give a local copy of a URI.

    Raises:
        InputError: nothing is there, a file is broken, widths or dtypes differ, or ids repeat.
    """
    parts = [path]
    if files.is_folder(path):
        parts = files.list_files(path, SUFFIX) or files.list_files(files.join(path, "shards"), SUFFIX)
        if not parts:
            raise InputError(f"no {SUFFIX} file of vectors in {path!r}; make one with jobs/embed.py.")
    tables = [_read_one(fetch(part)) for part in parts]
    kinds = [_kind(table.schema.field("vector"), part) for part, table in zip(parts, tables, strict=True)]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise InputError(
                f"{part!r} holds vectors of {kind}, but {parts[0]!r} of {kinds[0]}: vectors of one bank must have one "
                "width and dtype."
            )
    if any(IMAGE_SIZE.name not in table.column_names for table in tables):  # known of all of a bank's files, or of none
        tables = [t.drop_columns([IMAGE_SIZE.name]) if IMAGE_SIZE.name in t.column_names else t for t in tables]
    table = pa.concat_tables(tables)
    check_vectors(table, path)
    return table


def _kind(field: pa.Field, where: str) -> str:
    return f"width {field.type.list_size}, {vector_dtype(field, where)}"


def open_arrow(path: str, columns: Sequence[int] | None = None) -> pa.ipc.RecordBatchFileReader:
    """A reader of an Arrow IPC file; a local one is memory-mapped.

    Args:
        path: of the file.
        columns: numbers of the columns to read; all when not given.

    Raises:
        InputError: it is not there, or not whole.
    """
    filesystem, inside = files.filesystem_of(path)
    options = pa.ipc.IpcReadOptions(included_fields=list(columns or ()))
    try:
        source = pa.memory_map(inside) if not files.is_uri(path) else filesystem.open_input_file(inside)
        reader = pa.ipc.open_file(source, options=options)
        require_plain(reader.schema, path)
        return reader
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a table of vectors there.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path!r} is not a whole Arrow file: {error}. It may be truncated; make it again.") from error


def _read_one(path: str) -> pa.Table:
    reader = open_arrow(path)
    require_vector_column(reader.schema, path)
    return reader.read_all()


def require_vector_column(schema: pa.Schema, path: str) -> None:
    """Check that an Arrow file is one of vectors.

    Raises:
        InputError: it has no fixed-size-list column `vector`.
    """
    if "vector" not in schema.names or not pa.types.is_fixed_size_list(schema.field("vector").type):
        raise InputError(f"{path!r} is no table of vectors: it has no fixed-size-list column 'vector'.")
