"""A store that is a local folder behind `far://` URIs, and counts what is asked of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from xmatch.data import files

BLOCKS = 4
"""Reads that a file takes."""


class FarStore:
    """Objects of a folder; `far://NAME` is the file NAME in it.

    Args:
        folder: with the objects.
        log: gets a line `fetch NAME`, `look NAME` or `list NAME` for everything asked, from all processes.
        pause: called with the name before each block of a file.
    """

    def __init__(self, folder: Path, log: Path, pause: Callable[[str], None] = lambda _: None) -> None:
        self.inner = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.log, self.pause = log, pause
        log.touch()

    def install(self, monkeypatch) -> FarStore:
        real = files.filesystem_of
        monkeypatch.setattr(
            files,
            "filesystem_of",
            lambda path: (self, path.removeprefix("far://")) if path.startswith("far://") else real(path),
        )
        return self

    def asked(self, kind: str) -> list[str]:
        """Names asked for in one way, in order."""
        lines = self.log.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{kind} ")]

    def _note(self, line: str) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    def get_file_info(self, what: Any) -> Any:
        self._note(f"list {what.base_dir}" if isinstance(what, pafs.FileSelector) else f"look {what}")
        return self.inner.get_file_info(what)

    def open_input_stream(self, path: str, compression: Any = None) -> Any:
        self._note(f"fetch {path}")
        stream = self.inner.open_input_stream(path, compression=None)
        size = self.inner.get_file_info(path).size
        return _Stream(stream, -(-size // BLOCKS) or 1, lambda: self.pause(path))

    def open_input_file(self, path: str) -> Any:
        self._note(f"fetch {path}")
        return self.inner.open_input_file(path)


class _Stream:
    def __init__(self, stream: Any, block: int, pause: Callable[[], None]) -> None:
        self.stream, self.block, self.pause = stream, block, pause

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, count: int | None = None) -> bytes:
        self.pause()
        return self.stream.read(self.block if count else None)
