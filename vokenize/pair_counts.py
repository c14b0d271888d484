"""How often each token type took each image, in bounded memory: what does not fit is kept in temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
MOST_PAIRS = 1 << 24
"""Different pairs in memory, 16 bytes each."""
BUCKETS = 64
"""Files of a spill, by token type: at the end one of them must fit in memory."""


class Pairs(NamedTuple):
    """Different pairs of a token type and an image, sorted, with how often each occurred; (n,) int64 each."""

    types: Int64
    images: Int64
    counts: Int64


class PairCounts:
    """Counts pairs of a token type and an image.

    Args:
        images: of the key bank; images are 0 … images - 1.
        most_pairs: different pairs held in memory.
    """

    def __init__(self, images: int, most_pairs: int = MOST_PAIRS) -> None:
        self.images, self.most_pairs = images, most_pairs
        self._held: list[tuple[Int64, Int64]] = []
        self._held_pairs = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._spills = 0

    def __enter__(self) -> PairCounts:
        """Itself; temporary files are removed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary files."""
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, types: npt.NDArray[np.integer], images: npt.NDArray[np.integer]) -> None:
        """Count pairs, both arrays of shape (n,)."""
        keys, counts = np.unique(types.astype(np.int64) * self.images + images, return_counts=True)
        self._held.append((keys, counts.astype(np.int64)))
        self._held_pairs += len(keys)
        if self._held_pairs > self.most_pairs:
            self._held = [_merged(self._held)]
            self._held_pairs = len(self._held[0][0])
            if self._held_pairs > self.most_pairs // 2:
                self._spill()

    def blocks(self) -> Iterator[Pairs]:
        """All pairs; those of one token type are in one block."""
        if self._folder is None:
            yield self._pairs(*_merged(self._held))
            return
        self._spill()
        for bucket in range(BUCKETS):
            paths = [os.path.join(self._folder.name, f"{bucket}-{spill}.npy") for spill in range(self._spills)]
            yield self._pairs(*_merged([tuple(np.load(path)) for path in paths]))

    def _pairs(self, keys: Int64, counts: Int64) -> Pairs:
        return Pairs(keys // self.images, keys % self.images, counts)

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="pair-counts-")
        keys, counts = _merged(self._held)
        bucket_of = keys // self.images % BUCKETS
        for bucket in range(BUCKETS):
            chosen = bucket_of == bucket
            path = os.path.join(self._folder.name, f"{bucket}-{self._spills}.npy")
            np.save(path, np.stack([keys[chosen], counts[chosen]]))
        self._held, self._held_pairs = [], 0
        self._spills += 1


def _merged(held: list[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    if not held:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(held) == 1:
        return held[0]
    keys, counts = (np.concatenate(column) for column in zip(*held, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    if not len(starts):
        return keys, counts
    return keys[starts], np.add.reduceat(counts, starts)
