"""A small bank made from a seed, opened shard by shard, and one that takes its worker down."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import numpy as np

from xmatch.errors import InputError
from xmatch.search import Searcher, build_searcher


def toy_bank(keys: int = 700, width: int = 24, seed: int = 1) -> np.ndarray:
    """Keys with duplicates and ties across shards: small whole numbers."""
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (keys, width)).astype(np.float32)
    rows[keys // 2 :: 7] = rows[0]
    return rows


def toy_queries(count: int, width: int = 24, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)


@dataclass(frozen=True)
class OpenToy:
    """Opens rows of the toy bank."""

    keys: int = 700
    width: int = 24
    backend: str = "torch"

    def __call__(self, start: int, stop: int, threads: int) -> Searcher:
        rows = toy_bank(self.keys, self.width)[start:stop]
        return build_searcher(rows, self.backend, threads, first_id=start)


@dataclass(frozen=True)
class OpenDoomed:
    """As OpenToy, but dies before it answers: once, or always."""

    flag: str
    always: bool = False

    def __call__(self, start: int, stop: int, threads: int):
        toy = OpenToy()(start, stop, threads)
        return _Doomed(toy, self.flag, self.always) if start == 0 else toy


class _Doomed:
    def __init__(self, inner: Searcher, flag: str, always: bool) -> None:
        self.inner, self.flag, self.always = inner, flag, always

    def search(self, queries, k):
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            is_first = True
        except FileExistsError:
            is_first = False
        if is_first or self.always:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.search(queries, k)


@dataclass(frozen=True)
class OpenBroken:
    """Cannot be opened."""

    def __call__(self, start: int, stop: int, threads: int):
        raise InputError("the bank is broken at row 3")
