"""Packed banks kept on disk: what a scan makes of the keys is made once, and memory-mapped from then on.

    packed-<hash>-<of>-<kind>.bin in the bank's cache folder

    8 bytes     magic
    8 bytes     length of the preamble, little-endian
    preamble    JSON: what it belongs to, where header and tiles lie, their checksums
    4 bytes     CRC-32 of all before
    header      the scan's own
    zeros       up to the next multiple of 4096
    tiles       to the end of the file

A file is used only if it is whole: its size, the preamble's checksum, and those of header and tiles are compared when
it is loaded, which reads it once (about as fast as the disk or memory gives it). The layout of header and tiles is the
scan's affair: it refuses what it does not know, packs anew, and saves again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.data.key_banks import KeyBank
from xmatch.data.key_cache import HASH_DIGITS, keep

Bytes = npt.NDArray[np.uint8]

MAGIC = b"VKRPACK1"
ALIGNMENT = 4096
CHECKED_BYTES = 1 << 26
"""Tiles that one checksum covers."""
logger = logging.getLogger(__name__)


class PackedFiles:
    """Finds and keeps packed banks of one set of keys in one order.

    Args:
        folder: local cache folder; "": nothing is kept.
        key: what the keys are: the hash of their bank's content.
        of: which of that bank's keys are packed, in which order; see `variant`.
    """

    def __init__(self, folder: str, key: str, of: str = "all") -> None:
        self.folder, self.key, self.of = folder, key, of

    def variant(self, of: str) -> PackedFiles:
        """The same bank, but other keys of it, or in another order; `of` says which, in letters, digits, - and _."""
        return PackedFiles(self.folder, self.key, f"{self.of}_{of}")

    def path(self, kind: str) -> str:
        """The file of a kind of packing."""
        return files.join(self.folder, f"packed-{self.key[:HASH_DIGITS]}-{self.of}-{kind}.bin")

    def load(self, kind: str) -> tuple[bytes, Bytes] | None:
        """What was saved: header, and tiles memory-mapped at a multiple of 4096 bytes.

        Returns:
            None where nothing was saved, or the file is damaged, cut off, or of other keys.
        """
        if not self.folder or not os.path.exists(self.path(kind)):
            return None
        try:
            content: Bytes = np.memmap(self.path(kind), np.uint8, "r")
        except (OSError, ValueError):  # removed meanwhile, or empty
            return None
        return _read(content, self._belongs_to(kind))

    def save(self, kind: str, header: bytes, tiles: Bytes) -> None:
        """Keep a packed bank; where that cannot be done, one line of the log says so.

        Args:
            kind: of packing.
            header: anything.
            tiles: (n,) uint8, contiguous.
        """

        def write() -> None:
            with files.open_atomic(self.path(kind)) as sink:
                sink.write(_front(self._belongs_to(kind), header, tiles))
                sink.write(tiles.data)

        if self.folder:
            keep(self.folder, write)

    def _belongs_to(self, kind: str) -> dict[str, str]:
        return {"key": self.key, "of": self.of, "kind": kind}


def packed_files(bank: KeyBank) -> PackedFiles | None:
    """Where the packed forms of a whole bank are kept; None, and a line of the log, where it has no cache folder."""
    if not bank.cache:
        logger.warning("%s: no cache folder, so it is packed in memory, each time anew", bank.path)
        return None
    return PackedFiles(bank.cache, bank.hash)


def _front(belongs_to: dict[str, str], header: bytes, tiles: Bytes) -> bytes:
    """All that stands before the tiles."""
    preamble = json.dumps(
        {
            **belongs_to,
            "header_bytes": len(header),
            "header_crc": zlib.crc32(header),
            "tile_bytes": tiles.nbytes,
            "tile_crcs": _checksums(tiles),
        },
        sort_keys=True,
    ).encode()
    front = MAGIC + len(preamble).to_bytes(8, "little") + preamble
    front += zlib.crc32(front).to_bytes(4, "little") + header
    return front + bytes(-len(front) % ALIGNMENT)


def _read(content: Bytes, belongs_to: dict[str, str]) -> tuple[bytes, Bytes] | None:
    """Header and tiles of a whole file that belongs to this; None of any other."""
    start = len(MAGIC) + 8
    if content[: len(MAGIC)].tobytes() != MAGIC or len(content) < start:
        return None
    end = start + int.from_bytes(content[len(MAGIC) : start].tobytes(), "little")
    if end + 4 > len(content):
        return None
    if zlib.crc32(content[:end].data).to_bytes(4, "little") != content[end : end + 4].tobytes():
        return None
    known: dict[str, Any] = json.loads(content[start:end].tobytes())
    first = end + 4 + known["header_bytes"]
    first += -first % ALIGNMENT
    if {name: known[name] for name in belongs_to} != belongs_to or len(content) != first + known["tile_bytes"]:
        return None
    header, tiles = content[end + 4 : end + 4 + known["header_bytes"]].tobytes(), content[first:]
    if zlib.crc32(header) != known["header_crc"] or _checksums(tiles) != known["tile_crcs"]:
        return None
    return header, tiles


def _checksums(tiles: Bytes) -> list[int]:
    return [zlib.crc32(tiles[start : start + CHECKED_BYTES].data) for start in range(0, len(tiles), CHECKED_BYTES)]
