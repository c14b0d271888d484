"""Files of one id a line, cut into shards by byte offset, so that a list of any length is never held whole."""

from __future__ import annotations

from collections.abc import Iterator

from xmatch.data import files
from xmatch.errors import InputError

BLOCK = 1 << 20


def cut_ids(path: str, ids_per_shard: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) bytes of shards of so many ids, the last of fewer; empty lines count for nothing.

    Args:
        path: of the file.
        ids_per_shard: in each shard.
        most: ids taken in all; null takes every one.

    Raises:
        InputError: the file is not there.
    """
    filesystem, inside = files.filesystem_of(path)
    start = position = count = taken = 0
    with files.reading(path), filesystem.open_input_stream(inside, compression=None) as stream:
        for line in _lines(iter(lambda: bytes(stream.read(BLOCK)), b"")):
            position += len(line)
            count += line != b"\n"
            if count == ids_per_shard or taken + count == most:
                yield start, position
                start, taken, count = position, taken + count, 0
            if taken == most:
                return
    if count:
        yield start, position


def read_ids(path: str, start: int, stop: int) -> list[str]:
    """The ids between two bytes.

    Raises:
        InputError: the file cannot be read, or one is not UTF-8.
    """
    filesystem, inside = files.filesystem_of(path)
    with files.reading(path), filesystem.open_input_file(inside) as source:
        source.seek(start)
        data = bytes(source.read(stop - start))
    try:
        return [name for name in data.decode().split("\n") if name]
    except UnicodeDecodeError as error:
        raise InputError(f"{path!r} is not UTF-8 at byte {start + error.start}. Convert it to UTF-8.") from error


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a file, each with its line feed."""
    left = b""
    for block in blocks:
        *whole, left = (left + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if left:
        yield left
