"""A bounded folder on this machine's own disk, with copies of files that lie in an object store.

A copy is named by address, size and time of its object, so a changed object is another one. Processes share the folder
without knowing of each other. Who reads a copy holds a shared lock on it, who fetches one an exclusive lock on a file
under a temporary name; only what nobody holds is removed, least recently used first. Locks end with their process, so
a killed one leaves no more than a temporary file, which counts, and is taken over or removed. Room is reserved before
a byte is fetched: the folder never holds more than its limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.fs as pafs

from xmatch.data import files
from xmatch.errors import InputError

FETCHING = f"{files.TEMPORARY_MARK}fetch"
"""Ends the name of a copy that is being fetched."""
COPY_NAME = re.compile(r"[0-9a-f]{40}-(\d+)(?:\.\w+)?(" + FETCHING + ")?")
LOCK_NAME = ".lock"
"""Held while room is made and names change; says how many bytes are reserved, which is never less than are there, and
is counted anew whenever room is made."""
KEPT = 0.9
"""Share of the limit that stays when room is made, so that not every file makes room anew."""
BLOCK = 8 << 20


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Copies on each node's own disk of training data that lies at URIs such as s3://."""

    folder: str = ""
    """Folder on a disk of the node itself, shared by its workers; empty: one of this user in the system's folder for
    temporary files."""
    limit_gb: float = 20.0
    """Most that it holds, in GB of 10^9 bytes; what was not used for the longest time goes first."""

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant."""
        if not self.limit_gb > 0:
            raise InputError(f"cache.limit_gb is {self.limit_gb}; expected more than 0.")


class Stamp(NamedTuple):
    """What changes when an object does: bytes, and whole seconds of its time, as listings and look-ups agree on."""

    size: int
    seconds: int


class DoesNotFit(Exception):
    """A file has no place beside what is in use, or is larger than the limit."""


class LocalCache:
    """The copies of this machine.

    Objects are looked up once in the life of this object, so a copy that is there is used without a request.

    Args:
        config: folder and limit; nothing is made before something is fetched.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._is_given = bool(config.folder)
        own = os.path.join(tempfile.gettempdir(), f"vokenray-cache-{os.getuid()}")
        self.folder = os.path.abspath(config.folder or own)
        self.limit = int(config.limit_gb * 1e9)
        self._stamps: dict[str, Stamp] = {}
        self._held: dict[str, tuple[str, int]] = {}

    def learn(self, paths: Iterable[str]) -> None:
        """Look many objects up, by one listing for each of their folders; local paths are left out.

        Raises:
            InputError: a folder cannot be listed.
        """
        by_folder: dict[str, set[str]] = {}
        for path in paths:
            if _local(path) is None and "?" not in path:
                folder, _, name = path.rpartition("/")
                by_folder.setdefault(folder, set()).add(name)
        for folder, names in by_folder.items():
            known = _list(folder)
            self._stamps |= {f"{folder}/{name}": known[name] for name in names & known.keys()}

    def hold(self, path: str) -> str:
        """A local path with the content of `path`, which stays until this process ends; for memory maps.

        Args:
            path: of a file; a local one is given back as it is.

        Raises:
            InputError: it is not there, cannot be read, or does not fit beside what is in use.
        """
        local = _local(path)
        if local is None and path not in self._held:
            try:
                self._held[path] = self._take(path)
            except DoesNotFit as error:
                raise InputError(
                    f"{path!r} has {self._stamp(path).size:,} bytes and must be whole on this machine's disk, but "
                    f"{self.folder!r} may hold {self.limit:,} with what is in use there. Raise cache.limit_gb, and "
                    "choose a larger disk by cache.folder where it needs one."
                ) from error
        return self._held[path][0] if local is None else local

    @contextmanager
    def open(self, path: str) -> Iterator[str]:
        """A path with the content of `path` within the block.

        A local path is given as it is, and so is a URI that does not fit: whoever reads it reads the store.

        Raises:
            InputError: it is not there or cannot be read.
        """
        local = _local(path)
        if local is not None:
            yield local
            return
        try:
            copy, descriptor = self._take(path)
        except DoesNotFit:
            yield path
            return
        try:
            yield copy
        finally:
            os.close(descriptor)

    def _stamp(self, uri: str) -> Stamp:
        if uri not in self._stamps:
            self._stamps[uri] = _look_up(uri)
        return self._stamps[uri]

    def _take(self, uri: str) -> tuple[str, int]:
        """The copy of an object, and a descriptor with a shared lock on it."""
        stamp = self._stamp(uri)
        if stamp.size > self.limit:
            raise DoesNotFit
        digest = hashlib.sha256(f"{uri}\n{stamp.size}\n{stamp.seconds}".encode()).hexdigest()[:40]
        suffix = re.search(r"\.\w+$", uri)
        copy = os.path.join(self.folder, f"{digest}-{stamp.size}{suffix[0] if suffix else ''}")
        while True:
            descriptor = _open_whole(copy, stamp.size)
            if descriptor is not None:
                return copy, descriptor
            with self._locked() as book:
                fetching = self._begin(copy, stamp.size, book)
            if fetching is None:
                _wait_for_other(copy + FETCHING)
                continue
            self._fetch(uri, stamp, copy, fetching)
            if os.fstat(fetching).st_nlink:  # nobody removed it while the lock changed its kind
                return copy, fetching
            os.close(fetching)

    def _begin(self, copy: str, size: int, book: int) -> int | None:
        """A descriptor, locked, of the file to fetch into; null where another process is at it or has done it."""
        if os.path.exists(copy):
            return None
        if not os.path.exists(copy + FETCHING):
            reserved = _reserved(book)
            if reserved is None or reserved + size > self.limit:
                reserved = self._make_room(size)
            _reserve(book, reserved + size)
        descriptor = os.open(copy + FETCHING, os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            return None
        return descriptor

    def _fetch(self, uri: str, stamp: Stamp, copy: str, descriptor: int) -> None:
        """Fill a file that is reserved and locked, and give it its name; the lock becomes a shared one."""
        try:
            self._download(uri, descriptor)
            if os.fstat(descriptor).st_size != stamp.size or _look_up(uri) != stamp:
                raise InputError(f"{uri!r} changed while it was read; leave the data of a run alone until it ends.")
            os.fsync(descriptor)
            _use_now(descriptor)
            with self._locked():
                os.rename(copy + FETCHING, copy)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            with self._locked(), contextlib.suppress(FileNotFoundError):
                os.unlink(copy + FETCHING)
            os.close(descriptor)
            raise

    def _download(self, uri: str, descriptor: int) -> None:
        filesystem, inside = files.filesystem_of(uri)
        with open(descriptor, "r+b", closefd=False) as sink:
            sink.truncate(0)
            with files.reading(uri), filesystem.open_input_stream(inside, compression=None) as source:
                while block := source.read(BLOCK):
                    self._write(sink.fileno(), memoryview(block))

    def _write(self, descriptor: int, block: memoryview) -> None:
        try:
            while block:
                block = block[os.write(descriptor, block) :]
        except OSError as error:
            raise InputError(
                f"the cache {self.folder!r} cannot be written: {error.strerror}. Lower cache.limit_gb, or choose "
                "another disk by cache.folder."
            ) from error

    def _make_room(self, size: int) -> int:
        """Remove what was not used for the longest time until `size` bytes fit; the bytes that are left."""
        total, copies = 0, []
        for entry in os.scandir(self.folder):
            found = COPY_NAME.fullmatch(entry.name)
            if not found or (found[2] and _remove_if_free(entry.path)):
                continue
            total += int(found[1])
            if not found[2]:
                copies.append((entry.stat().st_atime_ns, entry.path, int(found[1])))
        aim = int(self.limit * KEPT) - size if total + size > self.limit else total
        for _, path, bytes_there in sorted(copies):
            if total <= aim:
                break
            if _remove_if_free(path):
                total -= bytes_there
        if total + size > self.limit:
            raise DoesNotFit
        return total

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The only process that changes names here; gives the descriptor of the file with the bytes reserved."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not self._is_given and os.lstat(self.folder).st_uid != os.getuid():
                raise InputError(f"the cache {self.folder!r} belongs to another user; choose another cache.folder.")
            descriptor = os.open(os.path.join(self.folder, LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise InputError(
                f"the cache {self.folder!r} cannot be used: {error.strerror}. Choose another cache.folder."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _local(path: str) -> str | None:
    """The local path that `path` names; null for an object in a store."""
    if path.startswith("file://"):
        return files.filesystem_of(path)[1]
    return None if files.is_uri(path) else path


def _look_up(uri: str) -> Stamp:
    filesystem, inside = files.filesystem_of(uri)
    with files.reading(uri):
        info = filesystem.get_file_info(inside)
    if info.type != pafs.FileType.File:
        raise InputError(f"{uri!r} does not exist; expected a file there.")
    return _stamp_of(info)


def _list(folder: str) -> dict[str, Stamp]:
    """The objects directly below a folder, by name."""
    filesystem, inside = files.filesystem_of(folder)
    with files.reading(folder):
        infos = filesystem.get_file_info(pafs.FileSelector(inside, allow_not_found=True, recursive=False))
    return {info.base_name: _stamp_of(info) for info in infos if info.type == pafs.FileType.File}


def _stamp_of(info: pafs.FileInfo) -> Stamp:
    return Stamp(int(info.size), (info.mtime_ns or 0) // 10**9)


def _open_whole(copy: str, size: int) -> int | None:
    """A copy that is there, with a shared lock; null where there is none. Its time of use is now."""
    try:
        descriptor = os.open(copy, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    info = os.fstat(descriptor)
    if info.st_nlink and info.st_size == size:
        _use_now(descriptor)
        return descriptor
    os.close(descriptor)  # removed between the two calls, or cut short by somebody
    with contextlib.suppress(FileNotFoundError):
        if os.stat(copy).st_size != size:
            os.unlink(copy)
    return None


def _use_now(descriptor: int) -> None:
    """Note the time of use to the nanosecond; what the system notes by itself is coarser."""
    os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


def _wait_for_other(fetching: str) -> None:
    """Wait until the process that fetches is done or dead."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(fetching, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_free(path: str) -> bool:
    """Remove a file that no process holds; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(descriptor):
            return False
        os.unlink(path)
        return True
    finally:
        os.close(descriptor)


def _reserved(book: int) -> int | None:
    """Bytes that copies here take at most; null where that is not known."""
    said = os.pread(book, 20, 0)
    return int(said) if len(said) == 20 and said.isdigit() else None


def _reserve(book: int, size: int) -> None:
    os.pwrite(book, f"{size:020d}".encode(), 0)
