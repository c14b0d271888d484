"""What `ray job submit --working-dir` would send: the very files, by Ray's own rules, before they are sent."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, RAY_RUNTIME_ENV_IGNORE_GITIGNORE
from ray._private.runtime_env.packaging import _dir_travel

from xmatch.errors import InputError

LIMIT_BYTES = int(DASHBOARD_CLIENT_MAX_SIZE)
"""Of an upload through the dashboard, 100 MiB in Ray 2.60."""
LARGE_BYTES = 10_000_000
"""A single file from here on is data, not code."""
NO_CODE = {".git", ".venv", "venv", "env", "node_modules", "build", "dist", "wandb", "htmlcov", "demo-output"}
"""Folders that a job never needs; so are those that begin with a dot, and caches of Python."""
BUILT = {".so", ".o", ".a", ".pyc", ".whl"}
"""What was built for the machine that it was built on."""
DATA = {".arrow", ".parquet", ".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".tar", ".zip", ".tsv"}


class UploadedFile(NamedTuple):
    """A file of an upload: its path below the folder, with slashes, and its bytes."""

    path: str
    size: int


def uploaded_files(folder: str) -> list[UploadedFile]:
    """The files that would be sent, sorted by path: those that neither .gitignore nor .rayignore names.

    Args:
        folder: what `--working-dir` would name.

    Raises:
        InputError: it is no folder.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"working_dir {folder!r} is no folder; give the root of the project.")
    found: list[UploadedFile] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append(UploadedFile(path.relative_to(root).as_posix(), path.stat().st_size))

    reads_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(root, [], note, include_gitignore=reads_gitignore, logger=logging.getLogger(__name__))
    return sorted(found)


class Mistake(NamedTuple):
    """Files that hardly belong in an upload.

    Attributes:
        pattern: for .rayignore.
        reason: why they do not belong.
        files: how many.
        size: of all of them, bytes.
    """

    pattern: str
    reason: str
    files: int
    size: int


def mistakes(files: Sequence[UploadedFile]) -> list[Mistake]:
    """What hardly belongs in an upload, the largest first."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for file in files:
        why = _mistake(PurePosixPath(file.path), file.size)
        if why:
            found[why].append(file.size)
    listed = [Mistake(*why, len(sizes), sum(sizes)) for why, sizes in found.items()]
    return sorted(listed, key=lambda m: (-m.size, m.pattern))


def _mistake(path: PurePosixPath, size: int) -> tuple[str, str] | None:
    for depth, name in enumerate(path.parts[:-1]):
        if name in NO_CODE or name.startswith(".") or name == "__pycache__" or name.endswith(".egg-info"):
            pattern = f"**/{name}" if name == "__pycache__" else "/".join(path.parts[: depth + 1])
            return pattern, "no code of a job"
    if path.suffix in BUILT:
        return f"*{path.suffix}", "built for this machine; nodes build their own"
    if path.suffix in DATA and size:
        return str(path), "data; put it on storage that the nodes reach"
    return (str(path), "a large file; put it on storage that the nodes reach") if size >= LARGE_BYTES else None
