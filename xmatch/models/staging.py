"""Models and tokenizers copied to where every worker can read them, in folders named by their content.

A staged folder BELOW/HASH holds the files that decide what is computed, and last of all `staged.json` with the size
and SHA-256 of each; HASH is the SHA-256 of that list. So equal content is copied once, a folder without its list is
not finished, and whoever opens one checks every byte. What lies at a URI is copied once to each machine's own disk.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from filelock import FileLock

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.hub import FILES, Kind, locate

LISTING = "staged.json"
NAME = re.compile(r"[0-9a-f]{64}")
BLOCK = 8 << 20


class FileFacts(NamedTuple):
    """Size of a file, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


Content = dict[str, FileFacts]
"""The files of a model or tokenizer by name."""


def content_of(folder: str, kind: Kind) -> Content:
    """The files directly in a local folder that decide what its model or tokenizer computes.

    Raises:
        InputError: there are none, or a model has no safetensors.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    kept = [name for name in names if name != LISTING and any(fnmatch.fnmatch(name, p) for p in FILES[kind])]
    if not kept or (kind == "model" and not any(name.endswith(".safetensors") for name in kept)):
        wanted = "weights as .safetensors" if kind == "model" else "a tokenizer's files, such as tokenizer.json"
        raise InputError(f"{folder!r} is no {kind}: expected {wanted}, found {', '.join(names[:5]) or 'nothing'}.")
    return {name: FileFacts(*files.size_and_sha256(os.path.join(folder, name))) for name in kept}


def content_hash(content: Mapping[str, FileFacts]) -> str:
    """SHA-256 of the list of files, in hexadecimal: the name of their staged folder."""
    return hashlib.sha256(_listing(content)).hexdigest()


def stage(folder: str, kind: Kind, below: str) -> str:
    """Copy a model or tokenizer below a folder or URI prefix, unless it is there: that costs one listing.

    Args:
        folder: local.
        kind: what of it is copied.
        below: place of all staged folders.

    Returns:
        The staged folder, BELOW/HASH.

    Raises:
        InputError: it is not whole, changes while it is read, or the place cannot be written.
    """
    return _staged(folder, content_of(folder, kind), below)


def stage_file(path: str, below: str) -> str:
    """Copy one local file, such as weights without a model's folder, into a staged folder of its own; that folder.

    Raises:
        InputError: it is not there, changes while it is read, or the place cannot be written.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path!r} does not exist; expected a file there.")
    folder, name = os.path.split(os.path.abspath(path))
    return _staged(folder, {name: FileFacts(*files.size_and_sha256(path))}, below)


def _staged(folder: str, content: Content, below: str) -> str:
    place = files.join(below, content_hash(content))
    sizes = {name: facts.bytes for name, facts in content.items()} | {LISTING: len(_listing(content))}
    if sizes.items() <= files.sizes(place).items():
        return place
    for name, facts in content.items():
        _copy(os.path.join(folder, name), files.join(place, name), facts)
    files.write_bytes(files.join(place, LISTING), _listing(content))
    return place


def is_staged(place: str) -> bool:
    """Whether a folder or URI is a finished staged folder."""
    is_named_so = NAME.fullmatch(place.rstrip("/").rsplit("/", 1)[-1]) is not None
    return is_named_so and files.exists(files.join(place, LISTING))


def local_folder(name: str, kind: Kind, **hub: Any) -> str:
    """The folder on this machine of a model or tokenizer by folder, URI, hub name or staged folder.

    A staged folder is checked byte by byte, and copied to this machine's disk where it lies at a URI; the others are
    as `hub.locate` has them.

    Raises:
        InputError: it is not there, or a staged file has other content than it was staged with.
    """
    return opened(name) if is_staged(name) else locate(name, kind, **hub)


def opened(place: str) -> str:
    """The folder on this machine of a staged folder, checked; any other name as it is.

    Raises:
        InputError: a file has other content than it was staged with; names it, and both hashes.
    """
    if not is_staged(place):
        return place
    content = _read_listing(place)
    if files.is_uri(place):
        return _fetched(place, content)
    _require_whole(place, content)
    return place


def opened_file(place: str) -> str:
    """The file on this machine of a staged folder of one file, checked; any other name as it is.

    Raises:
        InputError: it has other content than it was staged with, or the folder has several.
    """
    if not is_staged(place):
        return place
    names = sorted(_read_listing(place))
    if len(names) != 1:
        raise InputError(f"{place!r} has the files {', '.join(names)}; expected one.")
    return os.path.join(opened(place), names[0])


def _listing(content: Mapping[str, FileFacts]) -> bytes:
    return files.json_bytes({name: facts._asdict() for name, facts in content.items()})


def _read_listing(place: str) -> Content:
    path = files.join(place, LISTING)
    expected, found = place.rstrip("/").rsplit("/", 1)[-1], files.sha256(path)
    if found != expected:
        raise _tampered(path, expected, found)
    return {name: FileFacts(**facts) for name, facts in files.read_json(path).items()}


def _tampered(path: str, expected: str, found: str) -> InputError:
    return InputError(
        f"staged file {path!r} was changed since it was staged: expected SHA-256 {expected}, got {found}. Remove its "
        "folder and run the same command again, which stages it anew."
    )


def _require_whole(folder: str, content: Content) -> None:
    for name, facts in content.items():
        path = os.path.join(folder, name)
        found = files.sha256(path)
        if found != facts.sha256:
            raise _tampered(path, facts.sha256, found)


def _copy(source: str, target: str, facts: FileFacts) -> None:
    """Copy one file; what arrives must be what is expected."""
    digest, (filesystem, inside) = hashlib.sha256(), files.filesystem_of(source)
    with files.open_atomic(target) as sink:
        with files.reading(source), filesystem.open_input_stream(inside, compression=None) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                sink.write(block)
        if digest.hexdigest() != facts.sha256:
            raise _tampered(source, facts.sha256, digest.hexdigest())


def _fetched(place: str, content: Content) -> str:
    """This machine's copy of a staged folder at a URI: fetched by the first process that asks, the others wait.

    A copy that was damaged since is fetched again.
    """
    copies, name = _folder_of_copies(), place.rstrip("/").rsplit("/", 1)[-1]
    target = os.path.join(copies, name)
    with FileLock(f"{target}.lock"):
        if _is_whole(target, content):
            return target
        for left in os.listdir(copies):  # of processes that were killed: the lock is ours
            if left == name or left.startswith(f"{name}{files.TEMPORARY_MARK}"):
                shutil.rmtree(os.path.join(copies, left))
        fresh = tempfile.mkdtemp(prefix=f"{name}{files.TEMPORARY_MARK}", dir=copies)
        for file, facts in content.items():
            _copy(files.join(place, file), os.path.join(fresh, file), facts)
        os.rename(fresh, target)
    return target


def _is_whole(folder: str, content: Content) -> bool:
    try:
        _require_whole(folder, content)
    except InputError:
        return False
    return True


def _folder_of_copies() -> str:
    folder = os.path.join(tempfile.gettempdir(), f"vokenray-models-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid != os.getuid():
        raise InputError(f"the folder of copies {folder!r} belongs to another user; set TMPDIR to one of yours.")
    return folder
