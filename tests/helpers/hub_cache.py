"""A hub's cache on disk as huggingface_hub lays it out, without a hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

COMMIT = hashlib.sha1(b"first").hexdigest()


def fill_hub_cache(home: Path, name: str, folder: str, commit: str = COMMIT, branch: str = "main") -> Path:
    """Put a folder's files into HF_HOME's cache as a repository's commit, to which a branch points; the cache."""
    cache = home / "hub"
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for made in (repository / "blobs", repository / "refs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    for path in Path(folder).iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        os.symlink(os.path.relpath(blob, snapshot), snapshot / path.name)
    return cache
