"""Download large files so that nothing half or wrong is ever taken for the file, and unpack archives safely.

A download grows in `NAME.<mark of its address>.part`. A later run goes on from there by HTTP Range, guarded by the
server's ETag or date, so that two versions of a file are never joined. Its name comes last, once its hash is checked.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import requests
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the hub's version uses

from xmatch.data import files
from xmatch.data.registry import HubFiles, check_sha256
from xmatch.errors import InputError

BLOCK = 1 << 16
"""Bytes written at once; of these at most is lost when a connection is cut."""
MAX_MEMBERS = 5_000_000
"""Files in one archive; more is taken for an attack."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers after which the same request may succeed
Progress = Callable[[int], None]
"""Told how many bytes came; negative when bytes had to be thrown away."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How patient a download is."""

    attempts: int = 5
    """Attempts in a row without a new byte before the next address is tried."""
    backoff_s: float = 1.0
    """Wait before the second attempt; doubles each time, up to a minute."""
    timeout_s: float = 60.0
    """Seconds without an answer or a byte after which an attempt has failed."""


@dataclass(frozen=True)
class Downloaded:
    """A file that is there, whole."""

    path: str
    url: str
    """Where it came from; empty when it was there already."""
    sha256: str
    size_bytes: int
    is_checked: bool  # by a hash that was known before
    resumed_from: int = 0  # bytes that an earlier run had left


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    count: int
    top_level: list[str]


@dataclass(frozen=True)
class _Transfer:
    """One address on its way into one partial file."""

    url: str
    part: str
    size_bytes: int | None
    is_hash_known: bool
    config: DownloadConfig
    progress: Progress


class _Failed(Exception):
    """One address did not give the file; `again`: another attempt may."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def _nothing(count: int) -> None:
    """Progress that nobody watches."""


def part_path(target: str, url: str) -> str:
    """Where a download of `url` grows until it is whole."""
    return f"{target}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"


def download(
    urls: Sequence[str],
    target: str,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    config: DownloadConfig | None = None,
    progress: Progress = _nothing,
) -> Downloaded:
    """Download one file, going on where an earlier run stopped.

    Args:
        urls: addresses of the same bytes, tried in order.
        target: local path; appears only once the file is whole and its hash is right.
        sha256: expected hash, 64 digits or the first 8; None where none is published.
        size_bytes: expected size, checked before the body is read.
        config: how patient to be.
        progress: told of every block.

    Raises:
        InputError: no address gave the file (says why, each), the disk is full, or another file has its name.
    """
    expected = None if sha256 is None else check_sha256(sha256)
    if os.path.exists(target):
        return _present(target, expected)
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    failures = []
    for url in urls:
        part = part_path(target, url)
        before = _size(part)
        try:
            _fill(_Transfer(url, part, size_bytes, expected is not None, config or DownloadConfig(), progress))
            found = files.sha256(part)
            if expected is not None and not found.startswith(expected):
                _drop(part)
                raise _Failed(f"wrong bytes: expected sha256 {expected}, got {found}; they were deleted", again=False)
        except _Failed as failure:
            failures.append(f"{url}: {failure}")
            continue
        os.replace(part, target)
        for other in urls:
            _drop(part_path(target, other))
        return Downloaded(target, url, found, os.path.getsize(target), expected is not None, before)
    raise InputError(
        f"{os.path.basename(target)!r} could not be downloaded. {' | '.join(failures)}. Run the same command again to "
        "go on from what came, or give another address with --url."
    )


def _present(target: str, expected: str | None) -> Downloaded:
    found = files.sha256(target)
    if expected is not None and not found.startswith(expected):
        raise InputError(f"{target!r} is there with sha256 {found}, expected {expected}. Move it away and run again.")
    return Downloaded(target, "", found, os.path.getsize(target), expected is not None)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _drop(part: str) -> None:
    for path in (part, f"{part}.json"):
        if os.path.exists(path):
            os.unlink(path)


def _fill(job: _Transfer) -> None:
    """Receive until the partial file is whole; every new byte earns fresh attempts."""
    left = job.config.attempts
    while True:
        before = _size(job.part)
        try:
            return _receive(job)
        except _Failed as failure:
            left = job.config.attempts if _size(job.part) > before else left - 1
            if not failure.again or left <= 0:
                raise
        time.sleep(min(60.0, job.config.backoff_s * 2 ** (job.config.attempts - left)))


def _read_note(part: str) -> dict[str, Any]:
    """What the server said of the bytes in `part`."""
    try:
        with open(f"{part}.json", encoding="utf-8") as stream:
            note = json.load(stream)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _validator(response: requests.Response) -> str:
    """What identifies this version of the file: a strong ETag, else the date, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _receive(job: _Transfer) -> None:
    """One request, appended to the partial file or from the start."""
    note = _read_note(job.part)
    have = _size(job.part) if note and (note.get("validator") or job.is_hash_known) else 0
    if have and have == note.get("total"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "vokenray"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if note.get("validator"):
            headers["If-Range"] = note["validator"]
    try:
        with requests.get(job.url, headers=headers, stream=True, timeout=job.config.timeout_s) as response:
            start, total = _start(response, job.part, have, note)
            _check_answer(response, job, total)
            _check_room(job.part, total, start)
            note = {"url": job.url, "validator": _validator(response), "total": total}
            files.write_json(f"{job.part}.json", note)
            _append(response, job, start)
    except requests.exceptions.SSLError as error:
        raise _Failed(f"its certificate is not valid ({error})", again=False) from error
    except requests.RequestException as error:
        raise _Failed(f"{type(error).__name__}: {error}", again=not isinstance(error, ValueError)) from error
    came, whole = _size(job.part), total if total is not None else job.size_bytes
    if whole is not None and came != whole:
        if came > whole:
            _drop(job.part)
        raise _Failed(f"the connection ended after {came:,} of {whole:,} bytes", again=came < whole)


def _start(response: requests.Response, part: str, have: int, note: dict[str, Any]) -> tuple[int, int | None]:
    """(offset at which the answer's body belongs, size of the whole file)."""
    if response.status_code == 416:
        _drop(part)
        raise _Failed("the server has no bytes after those of an earlier run, which were deleted", again=True)
    if response.status_code not in (200, 206):
        raise _Failed(f"answered {response.status_code} {response.reason}", again=response.status_code in AGAIN)
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    spec = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(spec[2]) if spec and spec[2] != "*" else None
    is_same = _validator(response) == (note.get("validator") or "") and note.get("total") in (None, total)
    if not spec or int(spec[1]) != have or not is_same:
        _drop(part)
        raise _Failed("the file on the server changed since an earlier run, whose bytes were deleted", again=True)
    return have, total


def _check_answer(response: requests.Response, job: _Transfer, total: int | None) -> None:
    """Refuse what cannot be the file before its body is read."""
    if job.size_bytes is not None and total is not None and total != job.size_bytes:
        raise _Failed(f"offers {total:,} bytes, expected {job.size_bytes:,}", again=False)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _Failed("insists on compressing, which cannot be resumed", again=False)
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    if is_page and not job.is_hash_known and not job.url.endswith((".html", ".htm")):
        raise _Failed("answered with a web page, not the file; it may ask for a login", again=False)


def _check_room(part: str, total: int | None, start: int) -> None:
    folder = os.path.dirname(os.path.abspath(part))
    free = shutil.disk_usage(folder).free + (0 if start else _size(part))
    if total is not None and free < total - start:
        raise InputError(f"{folder!r} has {free:,} bytes free, but {total - start:,} are to come. Make room there.")


def _append(response: requests.Response, job: _Transfer, start: int) -> None:
    """Write the body at `start`; what an attempt reported is taken back when it breaks, for the next reports it."""
    shown = 0
    try:
        with open(job.part, "r+b" if start else "wb") as sink:
            sink.seek(start)
            job.progress(start)
            shown = start
            for block in response.iter_content(BLOCK):
                sink.write(block)
                job.progress(len(block))
                shown += len(block)
            sink.flush()
            os.fsync(sink.fileno())
    except requests.RequestException:
        job.progress(-shown)
        raise
    except OSError as error:
        raise InputError(f"cannot write {job.part!r}: {error.strerror or error}. Make room or move.") from error


def download_hub(wanted: HubFiles, folder: str) -> list[Downloaded]:
    """Download files of a hub repository at one commit and check the hashes the hub publishes for large files.

    Raises:
        InputError: the hub does not answer, nothing matches, or a hash is wrong (the file is deleted).
    """
    try:
        info = HfApi().model_info(wanted.repo_id, revision=wanted.revision, files_metadata=True)
        snapshot_download(wanted.repo_id, revision=info.sha, local_dir=folder, allow_patterns=list(wanted.patterns))
    except (HTTPError, OSError) as error:
        raise InputError(
            f"{wanted.repo_id!r} could not be fetched from the hub: {' '.join(str(error).split())} Check the network "
            "and HF_ENDPOINT, unset HF_HUB_OFFLINE, and run again: it goes on from what came."
        ) from error
    published = {s.rfilename: s.lfs.sha256 for s in info.siblings or () if s.lfs} | dict(wanted.sha256)
    found = []
    for name in (s.rfilename for s in info.siblings or ()):
        if not any(fnmatch.fnmatch(name, pattern) for pattern in wanted.patterns):
            continue
        path = files.join(folder, name)
        digest, expected = files.sha256(path), published.get(name)
        if expected is not None and digest != expected:
            os.unlink(path)
            raise InputError(f"{path!r} had sha256 {digest}, expected {expected}; it was deleted. Run again.")
        origin, size = f"{wanted.repo_id}@{info.sha}", os.path.getsize(path)
        found.append(Downloaded(path, origin, digest, size, expected is not None))
    if not found:
        raise InputError(f"{wanted.repo_id!r} at {info.sha} has no file like {', '.join(wanted.patterns)}.")
    return found


def unpack(archive: str, folder: str, kind: str, *, max_bytes: int) -> Unpacked:
    """Unpack an archive ("zip", or "tar" of any compression) into `folder`, all of it or nothing.

    What is in the folder stays, unless the archive has a file of that name; more than `max_bytes` is refused.

    Raises:
        InputError: it is damaged, too large, or holds links, devices or names that lead outside.
    """
    os.makedirs(folder, exist_ok=True)
    staging = tempfile.mkdtemp(prefix=f"unpack{files.TEMPORARY_MARK}", dir=folder)
    try:
        members = {"zip": _unzip, "tar": _untar}[kind](archive, staging, min(max_bytes, shutil.disk_usage(folder).free))
        count = sum(1 for _ in members)
        top_level = sorted(os.listdir(staging))
        _move_into(staging, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise InputError(f"{archive!r} cannot be unpacked: {error}. Delete it and fetch it again.") from error
    except OSError as error:
        raise InputError(
            f"{archive!r} cannot be unpacked into {folder!r}: {error}. Mend that and run again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Unpacked(count, top_level)


def _unzip(archive: str, staging: str, max_bytes: int) -> Iterator[str]:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        total = sum(member.file_size for member in members)
        _check_bounds(archive, total, len(members), max_bytes)
        for member in members:
            _check_name(archive, member.orig_filename)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{archive!r} holds {member.filename!r}, a link or device; it is not unpacked.")
            path = os.path.join(staging, member.filename)
            if member.is_dir():
                os.makedirs(path, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with opened.open(member) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, BLOCK)
            yield member.filename


def _untar(archive: str, staging: str, max_bytes: int) -> Iterator[str]:
    with tarfile.open(archive) as opened:
        total = count = 0
        for member in opened:
            total, count = total + member.size, count + 1
            _check_bounds(archive, total, count, max_bytes)
            _check_name(archive, member.name)
            if not member.isfile() and not member.isdir():
                raise InputError(f"{archive!r} holds {member.name!r}, a link or device; it is not unpacked.")
            opened.extract(member, staging, filter="data")
            if member.isfile():
                yield member.name


def _check_bounds(archive: str, total: int, count: int, max_bytes: int) -> None:
    if total > max_bytes or count > MAX_MEMBERS:
        raise InputError(
            f"{archive!r} would unpack to {total:,} bytes or more in {count:,} files; at most {max_bytes:,} bytes "
            "fit or are allowed. Make room or raise --max_unpacked_gb if you trust it."
        )


def _check_name(archive: str, name: str) -> None:
    pieces = PurePosixPath(name)
    if not name or pieces.is_absolute() or ".." in pieces.parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
        raise InputError(f"{archive!r} holds {name!r}, which leads outside its folder; it is not unpacked.")


def _move_into(staging: str, folder: str) -> None:
    for parent, _, names in os.walk(staging):
        target = os.path.normpath(os.path.join(folder, os.path.relpath(parent, staging)))
        os.makedirs(target, exist_ok=True)
        for name in names:
            os.replace(os.path.join(parent, name), os.path.join(target, name))
