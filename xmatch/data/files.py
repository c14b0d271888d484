"""Local paths and object-store URIs behind one set of verbs, with writes that are atomic.

A path is either local ("/data/x", "x") or a URI that pyarrow knows ("s3://bucket/x"). A local file is written under a
temporary name in the same folder, flushed to disk and renamed. For an object store it is collected in a local
temporary file and uploaded when it is whole: a stream that an error abandons would be closed, and so published, half.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from xmatch.data.plain_columns import require_plain
from xmatch.data.stores import Store, open_store
from xmatch.errors import InputError

UPLOAD_BLOCK = 8 << 20
FOREIGN_S = 86_400.0
"""Age in seconds at which what another machine was writing counts as left."""
TEMPORARY_MARK = ".tmp-"
"""Part of every temporary file name; a name that holds it is never a finished file."""


def is_uri(path: str) -> bool:
    """Whether `path` names an object in a store rather than a local file."""
    return "://" in path


def filesystem_of(path: str) -> tuple[pafs.FileSystem | Store, str]:
    """The file system of a path and the path inside it; an object store's refusals are StoreErrors.

    Raises:
        InputError: the URI's scheme is unknown, or it holds credentials.
    """
    return open_store(path) if is_uri(path) else (pafs.LocalFileSystem(), os.path.abspath(path))


def join(base: str, *parts: str) -> str:
    """`base` with relative `parts` below it; a part can never climb out of `base`.

    Raises:
        InputError: a part is absolute, a URI, or holds "..".
    """
    for part in parts:
        pieces = PurePosixPath(part.replace("\\", "/"))
        if pieces.is_absolute() or ".." in pieces.parts or is_uri(part) or "\0" in part:
            raise InputError(f"{part!r} would leave {base!r}: expected a relative name without '..'.")
    return "/".join([base.rstrip("/") if base else ".", *parts])


def require_inside(root: str, paths: Iterable[str]) -> None:
    """Check that no local path below a folder is a symbolic link, or lies behind one, that leads out of it.

    The folder itself may be a link. An object store has none.

    Raises:
        InputError: one leads out; names it and where it leads.
    """
    filesystem, inside = filesystem_of(root or ".")
    if isinstance(filesystem, Store):
        return
    real, folders = os.path.join(os.path.realpath(inside), ""), dict[str, str]()
    for path in paths:
        place = filesystem_of(path)[1] if is_uri(path) else path
        folder, name = os.path.split(place)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        target = os.path.realpath(place) if os.path.islink(place) else os.path.join(folders[folder], name)
        if not target.startswith(real):
            raise InputError(
                f"{path!r} is a link to {target!r}, outside of {root!r}: what a data set links to need not be part of "
                "it. Copy the file there, or give the folder that holds it."
            )


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inside = filesystem_of(path)
    return bool(filesystem.get_file_info(inside).type != pafs.FileType.NotFound)


def is_folder(path: str) -> bool:
    """Whether `path` is a folder (in an object store: a common prefix of objects)."""
    filesystem, inside = filesystem_of(path)
    return bool(filesystem.get_file_info(inside).type == pafs.FileType.Directory)


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Finished files directly in `folder`, sorted by name, as full paths or URIs; empty when the folder is absent."""
    filesystem, inside = filesystem_of(folder)
    infos = filesystem.get_file_info(pafs.FileSelector(inside, allow_not_found=True, recursive=False))
    names = sorted(i.base_name for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix))
    return [join(folder, name) for name in names if TEMPORARY_MARK not in name]


def make_folder(path: str) -> None:
    """Create a folder and those above it; nothing happens in an object store, which has none."""
    if not is_uri(path):
        os.makedirs(path, exist_ok=True)


@contextmanager
def open_atomic(path: str) -> Iterator[pa.NativeFile]:
    """A binary sink that appears at `path` only when the block ends without an error.

    Raises:
        InputError: the place cannot be written.
    """
    filesystem, inside = filesystem_of(path)
    if is_uri(path):
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            whole = os.path.join(folder, "whole")
            with pa.OSFile(whole, "wb") as sink:
                yield sink
            _upload(whole, filesystem, inside, path)
        return
    temporary = temporary_name(inside)
    try:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        sink = pa.OSFile(temporary, "wb")
    except OSError as error:
        raise InputError(f"cannot write {path!r}: {error.strerror or error}. Choose a writable output.") from error
    try:
        with sink:
            yield sink
        flush_to_disk(temporary)
        os.replace(temporary, inside)
        flush_to_disk(os.path.dirname(inside))
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _upload(whole: str, filesystem: Any, inside: str, path: str) -> None:
    with reading(path), open(whole, "rb") as source, filesystem.open_output_stream(inside) as sink:
        while block := source.read(UPLOAD_BLOCK):
            sink.write(block)


def flush_to_disk(path: str) -> None:
    """Have the system write a local file, or a folder's list of names, to the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_folder(source: str, target: str) -> None:
    """Copy every file of a folder, sub-folders included; either side may be a URI. Files there are replaced."""
    systems = []
    for place in (source, target):
        filesystem, inside = filesystem_of(place)
        systems.append((filesystem.inner if isinstance(filesystem, Store) else filesystem, inside))
    make_folder(target)
    with reading(source if is_uri(source) else target):
        pafs.copy_files(
            systems[0][1], systems[1][1], source_filesystem=systems[0][0], destination_filesystem=systems[1][0]
        )


def local_copy(path: str) -> str:
    """A local path with the content of `path`: itself where it is local, else a copy in a temporary folder.

    Raises:
        InputError: it is not there.
    """
    if not is_uri(path):
        return path
    if not exists(path):
        raise InputError(f"{path!r} does not exist; expected a file or folder there.")
    place = os.path.join(tempfile.mkdtemp(prefix="copy-"), path.rstrip("/").rsplit("/", 1)[-1])
    if is_folder(path):
        copy_folder(path, place)
    else:
        with open(place, "wb") as sink:
            sink.write(read_bytes(path))
    return place


def temporary_name(path: str) -> str:
    """A name beside a local `path` for what is not finished; it says who writes it."""
    return f"{path}{TEMPORARY_MARK}{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"


def remove_temporaries(folder: str) -> list[str]:
    """Remove what killed writers left in a local `folder`; the names removed.

    What a living process of this machine writes stays, and what another machine does for a day.
    """
    if is_uri(folder) or not os.path.isdir(folder):
        return []
    left = sorted(name for name in os.listdir(folder) if TEMPORARY_MARK in name)
    removed = [name for name in left if not _is_being_written(os.path.join(folder, name))]
    for name in removed:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    return removed


def _is_being_written(temporary: str) -> bool:
    host, _, rest = temporary.rpartition(TEMPORARY_MARK)[2].rpartition("-")[0].rpartition("-")
    if not rest.isdigit():
        return False
    if host != os.uname().nodename:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - os.path.getmtime(temporary) < FOREIGN_S
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(rest) != os.getpid()


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Whatever a system or store says of a file within the block is an InputError that names it."""
    try:
        with _refusals(path):
            yield
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a file there.") from error
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error}.") from error


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    filesystem, inside = filesystem_of(path)
    if isinstance(filesystem, Store):
        with filesystem.refusals(inside):
            yield
    else:
        yield


def read_bytes(path: str, most: int | None = None) -> bytes:
    """A whole file.

    Args:
        path: of the file.
        most: bytes allowed; None: any number.

    Raises:
        InputError: it is not there, cannot be read, is larger, or (with `most`) is no regular file.
    """
    filesystem, inside = filesystem_of(path)
    with reading(path):
        if most is None:
            with filesystem.open_input_stream(inside, compression=None) as stream:
                return bytes(stream.read())
        if not isinstance(filesystem, Store) and os.path.exists(inside) and not os.path.isfile(inside):
            raise InputError(f"{path!r} is no regular file.")  # reading a pipe or a device may never end
        with filesystem.open_input_file(inside) as source:
            if source.size() > most:
                raise InputError(f"{path!r} has {source.size():,} bytes, more than the {most:,} allowed.")
            return bytes(source.read())


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with open_atomic(path) as sink:
        sink.write(data)


def read_text(path: str) -> str:
    """A whole UTF-8 file.

    Raises:
        InputError: it is not there, or not UTF-8.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path!r} is not UTF-8 at line {line}, byte {error.start}. Convert it to UTF-8.") from error


def read_json(path: str) -> Any:
    """A JSON file.

    Raises:
        InputError: it is not there or not JSON; names line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path!r} is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
            f"{' (the file is empty)' if not text.strip() else ''}. Mend or regenerate the file."
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path!r} nests too deeply or holds a number too long: {error}. Regenerate it.") from error


def write_json(path: str, value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, a final newline; equal values give equal bytes."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """JSON as `write_json` writes it."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_parquet(path: str) -> pa.Table:
    """One Parquet file as a table.

    Raises:
        InputError: it is not there, is not a whole Parquet file, or has a column that is not plain.
    """
    filesystem, inside = filesystem_of(path)
    try:
        with filesystem.open_input_file(inside) as source:
            require_plain(pq.read_schema(source), path)
            return pq.read_table(source)
    except FileNotFoundError as error:
        raise InputError(f"{path!r} does not exist; expected a Parquet file there.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path!r} is not a whole Parquet file: {error}. It may be truncated; make it again."
        ) from error


def write_parquet(path: str, table: pa.Table) -> None:
    """Write one Parquet file atomically; equal tables give equal bytes."""
    with open_atomic(path) as sink:
        pq.write_table(table, sink, compression="zstd")


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal, read in blocks of 4 MiB."""
    return size_and_sha256(path)[1]


def size_and_sha256(path: str) -> tuple[int, str]:
    """Bytes of a file and their SHA-256 in hexadecimal, by one reading."""
    filesystem, inside = filesystem_of(path)
    digest, size = hashlib.sha256(), 0
    with reading(path), filesystem.open_input_stream(inside, compression=None) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def sizes(folder: str) -> dict[str, int]:
    """Bytes of every finished file directly in a folder, by name; one listing."""
    filesystem, inside = filesystem_of(folder)
    infos = filesystem.get_file_info(pafs.FileSelector(inside, allow_not_found=True, recursive=False))
    return {
        i.base_name: int(i.size) for i in infos if i.type == pafs.FileType.File and TEMPORARY_MARK not in i.base_name
    }


def remove(path: str) -> None:
    """Remove a file; nothing happens where there is none."""
    filesystem, inside = filesystem_of(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inside)
