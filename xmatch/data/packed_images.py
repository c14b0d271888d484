"""Images inside tars and Parquet files, named by uri: `PATH.tar#MEMBER` and `PATH.parquet#ID`.

MEMBER is a name in the tar's own table and ID a value of the `id` column (without one, the row number from 0). Both
are looked up, never opened as paths, so no name can leave its file. A tar is read at random by an index of offsets; a
Parquet file is read a row group at a time, so shuffled training from Parquet wants small row groups.
"""

from __future__ import annotations

import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmatch.data import files
from xmatch.data.plain_columns import require_plain
from xmatch.errors import InputError

PACKED_URI = re.compile(r"(.+?\.(?:tar|parquet))#(.+)", re.DOTALL)
MAX_ENCODED_BYTES = 400_000_000
"""Of an encoded image: more than the largest image decoded takes as plain RGB, 300 MB."""
MAX_GROUP_BYTES = 4 << 30
"""Of the images in a Parquet file's row group, which is read whole."""
IMAGE_COLUMNS = ("bytes", "image", "jpg")
"""Columns of encoded images, the first that is there: binary, or a struct with a binary field `bytes`."""


class TarMember(NamedTuple):
    """Where the content of a regular file lies in a tar, in bytes."""

    start: int
    size: int


class ParquetImages(NamedTuple):
    """How a Parquet file of images is found by id.

    row_of: row by id, null where there is no column `id`; group_starts: first row of each row group, and their end.
    """

    row_of: dict[str, int] | None
    group_starts: list[int]
    column: str


def split_packed(uri: str) -> tuple[str, str] | None:
    """Pack and member of a uri that names an image inside a tar or Parquet file; null for any other."""
    found = PACKED_URI.fullmatch(uri)
    return (found[1], found[2]) if found else None


def read_packed(pack: str, member: str) -> bytes:
    """The encoded image `member` of a tar or Parquet file.

    Raises:
        InputError: the file is missing or broken, or has no such member.
    """
    stamp = _stamp(pack)
    return _read_member(pack, member, stamp) if pack.endswith(".tar") else _read_row(pack, member, stamp)


@contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """A tar to be walked once, in order: seeking over contents on a disk, streaming from an object store.

    Raises:
        InputError: it is not there or broken.
    """
    filesystem, inside = files.filesystem_of(path)
    try:
        if files.is_uri(path):
            with (
                filesystem.open_input_stream(inside, compression=None) as stream,
                tarfile.open(fileobj=stream, mode="r|") as tar,
            ):
                yield tar
        else:
            with filesystem.open_input_file(inside) as source, tarfile.open(fileobj=source, mode="r:") as tar:
                yield tar
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a tar there.") from error
    except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError, OverflowError) as error:
        raise InputError(f"{path!r} is not a whole tar: {error}. Copy it again.") from error


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a regular file with its content in one piece: no link, device or sparse file."""
    return member.isreg() and not member.issparse() and member.size >= 0


def _stamp(path: str) -> tuple[int, int]:
    """What changes when a local file does, so that no index outlives its file."""
    if files.is_uri(path):
        return (0, 0)
    info = files.filesystem_of(path)[0].get_file_info(files.filesystem_of(path)[1])
    return (info.size or 0, info.mtime_ns or 0)


@lru_cache(maxsize=64)
def _tar_members(path: str, stamp: tuple[int, int]) -> dict[str, TarMember]:
    with open_tar(path) as tar:
        return {m.name: TarMember(m.offset_data, m.size) for m in tar if is_plain(m)}


def _read_member(path: str, member: str, stamp: tuple[int, int]) -> bytes:
    place = _tar_members(path, stamp).get(member)
    if place is None:
        raise InputError(f"{path!r} has no file {member!r}; expected a member of that tar.")
    if place.size > MAX_ENCODED_BYTES:
        raise InputError(f"{path!r}, {member!r} has {place.size:,} bytes, more than the {MAX_ENCODED_BYTES:,} allowed.")
    filesystem, inside = files.filesystem_of(path)
    try:
        with filesystem.open_input_file(inside) as source:
            data = bytes(source.read_at(place.size, place.start))
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error}.") from error
    if len(data) != place.size:
        raise InputError(f"{path!r} ends within {member!r}: {len(data)} of {place.size} bytes. Copy it again.")
    return data


def image_column(schema: pa.Schema, path: str) -> str:
    """The column of encoded images in a Parquet file.

    Raises:
        InputError: there is none.
    """
    for name in IMAGE_COLUMNS:
        if name in schema.names and (pa.types.is_struct(kind := schema.field(name).type) or _is_binary(kind)):
            return name
    raise InputError(f"{path!r} has columns {schema.names}; expected encoded images in {', '.join(IMAGE_COLUMNS)}.")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, of which only what is asked for is read.

    Raises:
        InputError: it is not there or broken.
    """
    filesystem, inside = files.filesystem_of(path)
    try:
        with filesystem.open_input_file(inside) as source, pq.ParquetFile(source) as parquet:
            require_plain(parquet.schema_arrow, path)
            yield parquet
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a Parquet file there.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path!r} is not a whole Parquet file: {error}. Make it again.") from error


@lru_cache(maxsize=16)
def _parquet_images(path: str, stamp: tuple[int, int]) -> ParquetImages:
    with open_parquet(path) as parquet:
        column = image_column(parquet.schema_arrow, path)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
        row_of: dict[str, int] | None = None
        if "id" in parquet.schema_arrow.names:
            row_of = {}
            for row, name in enumerate(parquet.read(columns=["id"]).column("id").to_pylist()):
                row_of.setdefault(str(name), row)
    return ParquetImages(row_of, [0, *accumulate(sizes)], column)


@lru_cache(maxsize=1)
def _row_group(path: str, stamp: tuple[int, int], group: int, column: str) -> pa.ChunkedArray:
    with open_parquet(path) as parquet:
        found = parquet.metadata.row_group(group)
        size = sum(found.column(at).total_uncompressed_size for at in range(found.num_columns))
        if size > MAX_GROUP_BYTES:
            raise InputError(
                f"{path!r}: row group {group} has {size:,} bytes, more than the {MAX_GROUP_BYTES:,} allowed. Write it "
                "again with smaller row groups."
            )
        return parquet.read_row_group(group, columns=[column]).column(column)


def _read_row(path: str, member: str, stamp: tuple[int, int]) -> bytes:
    found = _parquet_images(path, stamp)
    if found.row_of is not None:
        row = found.row_of.get(member)
    else:
        row = int(member) if member.isascii() and member.isdigit() and len(member) < 19 else None
    if row is None or row >= found.group_starts[-1]:
        raise InputError(f"{path!r} has no image {member!r}; expected an id, or without ids a row from 0.")
    group = bisect_right(found.group_starts, row) - 1
    value = _row_group(path, stamp, group, found.column)[row - found.group_starts[group]].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise InputError(f"{path!r}, row {row}: the image is null or empty.")
    return bytes(data)
