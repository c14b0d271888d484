"""The one table of vectors: key banks, image features, region features and text embeddings are all this table.

Arrow, one row per vector, in uncompressed Arrow IPC files that are memory-mapped when they are read:

    id      string                       stable, unique within a bank ("SET/image" for images)
    group   string, may be null          rows with one group are views of one thing (several crops of one image)
    vector  fixed_size_list<float>[D]    float32 or float16
    box     fixed_size_list<float>[4]    may be null; x1, y1, x2, y2 in pixels
    uri     string, may be null          where the image is, as it was read

A bank is one `.arrow` file or a folder of them; its row order is the files' name order, and the row number is the
voken id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.errors import InputError

SUFFIX = ".arrow"


def vector_schema(width: int, dtype: pa.DataType | None = None) -> pa.Schema:
    """The schema of a bank of `width`-dimensional vectors; `dtype` is float32 (default) or float16."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            ("group", pa.string()),
            pa.field("vector", pa.list_(dtype or pa.float32(), width), nullable=False),
            ("box", pa.list_(pa.float32(), 4)),
            ("uri", pa.string()),
        ]
    )


def make_vectors(
    ids: Sequence[str],
    vectors: npt.NDArray[np.floating],
    *,
    groups: Sequence[str | None] | None = None,
    boxes: npt.NDArray[np.float32] | None = None,
    uris: Sequence[str | None] | None = None,
) -> pa.Table:
    """A table of vectors.

    Args:
        ids: N stable ids.
        vectors: (N, D), float32 or float16.
        groups: N group ids or nulls.
        boxes: (N, 4) float32, pixels.
        uris: N places or nulls.

    Raises:
        InputError: the counts differ, or `vectors` is not a matrix of float32 or float16.
    """
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        raise InputError(f"vectors must be (N, D) float32 or float16, got {vectors.shape} {vectors.dtype}.")
    count, width = vectors.shape
    for name, column in (("ids", ids), ("groups", groups), ("boxes", boxes), ("uris", uris)):
        if column is not None and len(column) != count:
            raise InputError(f"{count} vectors came with {len(column)} {name}; there must be one for each vector.")
    kind = pa.from_numpy_dtype(vectors.dtype)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), kind)
    nulls = pa.nulls(count, pa.string())
    flat_boxes = pa.nulls(count, pa.list_(pa.float32(), 4))
    if boxes is not None:
        flat_boxes = pa.FixedSizeListArray.from_arrays(pa.array(boxes.astype(np.float32).reshape(-1)), 4)
    return pa.table(
        [
            pa.array(list(ids), pa.string()),
            nulls if groups is None else pa.array(list(groups), pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, width),
            flat_boxes,
            nulls if uris is None else pa.array(list(uris), pa.string()),
        ],
        schema=vector_schema(width, kind),
    )


def matrix(table: pa.Table, column: str = "vector") -> npt.NDArray[np.floating]:
    """A fixed-size-list column as an (N, D) array of its own dtype; a view where the column is one chunk."""
    chunked = table.column(column)
    width: int = chunked.type.list_size
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], chunked.type)
    rows: npt.NDArray[np.floating] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return rows


def check_vectors(table: pa.Table, where: str) -> None:
    """Check that a table is a table of vectors with unique ids.

    Raises:
        InputError: a column is missing or of another type, an id repeats, or a vector is null; names `where`.
    """
    missing = {"id", "vector"} - set(table.column_names)
    if missing:
        raise InputError(f"{where!r} is no table of vectors: column {sorted(missing)[0]!r} is missing.")
    kind = table.schema.field("vector").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float32(), pa.float16()):
        raise InputError(f"{where!r}: column 'vector' must be a fixed-size list of float32 or float16, got {kind}.")
    if table.column("vector").null_count or table.column("id").null_count:
        raise InputError(f"{where!r}: 'id' and 'vector' must not be null.")
    counts = table.column("id").value_counts()
    repeated = (
        [row["values"].as_py() for row in counts if row["counts"].as_py() > 1][:3] if len(counts) < len(table) else []
    )
    if repeated:
        raise InputError(f"{where!r}: ids must be unique, but {', '.join(map(repr, repeated))} repeat.")


def write_vectors(path: str, table: pa.Table) -> None:
    """Write a table of vectors atomically as one Arrow IPC file."""
    with files.open_atomic(path) as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_vectors(path: str) -> pa.Table:
    """A bank of vectors: one `.arrow` file, or all of a folder (or of its `shards` folder) in name order.

    Local files are memory-mapped: rows are read from disk when they are used.

    Raises:
        InputError: nothing is there, a file is broken, widths or dtypes differ, or ids repeat.
    """
    parts = [path]
    if files.is_folder(path):
        parts = files.list_files(path, SUFFIX) or files.list_files(files.join(path, "shards"), SUFFIX)
        if not parts:
            raise InputError(f"no {SUFFIX} file of vectors in {path!r}; make one with jobs/embed.py.")
    tables = [_read_one(part) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        if table.schema.field("vector").type != tables[0].schema.field("vector").type:
            raise InputError(
                f"{part!r} holds {table.schema.field('vector').type}, but {parts[0]!r} holds "
                f"{tables[0].schema.field('vector').type}: vectors of one bank must have one width and dtype."
            )
    table = pa.concat_tables(tables)
    check_vectors(table, path)
    return table


def _read_one(path: str) -> pa.Table:
    filesystem, inside = files.filesystem_of(path)
    try:
        source = pa.memory_map(inside) if not files.is_uri(path) else filesystem.open_input_file(inside)
        table = pa.ipc.open_file(source).read_all()
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a table of vectors there.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path!r} is not a whole Arrow file: {error}. It may be truncated; make it again.") from error
    if "vector" not in table.column_names or not pa.types.is_fixed_size_list(table.schema.field("vector").type):
        raise InputError(f"{path!r} is no table of vectors: it has no fixed-size-list column 'vector'.")
    return table
