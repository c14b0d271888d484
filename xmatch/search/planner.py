"""What a search costs before it runs: bytes, multiplications, layout over actors, and its rate on this machine.

Shapes: Q queries, N keys, D width, k results.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from xmatch.errors import InputError
from xmatch.search.scores import Float32
from xmatch.search.searcher import build_searcher, fastest_backend

SCAN_BYTES = {"native": 2, "torch": 2, "triton": 2, "faiss": 4}
"""Bytes of one value in a backend's own copy of the keys, at most: bf16, or float32 in faiss."""
MEMORY_SHARE = 0.6
"""Of the memory an actor may use, what its keys may take; the rest is for the model, batches and buffers."""
SAMPLE_KEYS = 1 << 16
SAMPLE_QUERIES = 1024


class BankShape(NamedTuple):
    """Size of a key bank: N keys of width D, and the bytes of one stored value."""

    keys: int
    width: int
    item_bytes: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all stored values."""
        return self.keys * self.width * self.item_bytes


class Layout(NamedTuple):
    """How a bank lies on actors.

    Attributes:
        backend: that scans it.
        shards: parts of the bank, each held by actors of their own; 1: every worker holds the whole bank itself, next
            to its encoder, and only ids and scores travel.
        replicas: actors for each shard.
        bytes_per_actor: of keys, stored and packed, in each actor that holds some.
        in_workers: whether every worker holds the bank; else search runs in actors of its own.
    """

    backend: str
    shards: int
    replicas: int
    bytes_per_actor: int
    in_workers: bool

    @property
    def has_search_actors(self) -> bool:
        """Whether search runs in actors of its own."""
        return not self.in_workers

    def __str__(self) -> str:
        """As the plan prints it."""
        if self.has_search_actors:
            each = "an actor of its own" if self.replicas == 1 else f"{self.replicas} actors of its own"
            return f"{self.shards} shard{'s' if self.shards > 1 else ''}, each in {each}"
        return "the whole bank in every worker, next to its encoder"


class SearchRate(NamedTuple):
    """What was measured: queries a second over `keys` keys on the threads of one actor."""

    queries_per_s: float
    keys: int

    def seconds(self, queries: float, keys: int) -> float:
        """Seconds for `queries` over `keys` keys on one actor, time taken as growing with the number of keys."""
        return queries / self.queries_per_s * keys / max(1, self.keys)


def bank_bytes(shape: BankShape, backend: str) -> int:
    """Bytes of a bank in the memory of one actor: the stored rows, and the backend's copy of them."""
    return shape.stored_bytes + shape.keys * shape.width * SCAN_BYTES.get(backend, 4)


def search_flop(queries: float, shape: BankShape) -> float:
    """Floating-point operations of an exact scan: a multiplication and an addition for each value of each pair."""
    return 2.0 * queries * shape.keys * shape.width


def plan_layout(
    shape: BankShape, backend: str, memory_per_actor: float, *, shards: int | None = None, replicas: int = 1
) -> Layout:
    """Replicate the bank where it fits an actor, shard it where it does not.

    Args:
        shape: of the bank.
        backend: a name of `build_searcher`, or `auto`.
        memory_per_actor: bytes that one actor may use.
        shards: parts, if it is settled already; the fewest that fit when not given.
        replicas: actors for each shard.

    Raises:
        InputError: there are more shards than keys, or a count below 1.
    """
    if replicas < 1 or (shards is not None and not 1 <= shards <= max(1, shape.keys)):
        raise InputError(
            f"search needs 1 to {shape.keys:,} shards and at least 1 replica, got {shards} shards and {replicas} "
            "replicas."
        )
    name = fastest_backend(shape.keys, shape.width, shape.item_bytes) if backend == "auto" else backend
    total = bank_bytes(shape, name)
    if shards is None:
        fit = max(1.0, MEMORY_SHARE * memory_per_actor)
        shards = min(max(1, shape.keys), int(-(-total // fit)) or 1)
    return Layout(name, shards, replicas, -(-total // shards), shards == replicas == 1)


def shard_rows(keys: int, shards: int) -> list[tuple[int, int]]:
    """First and one past the last row of each shard: sizes differ by one at most."""
    edges = [keys * shard // shards for shard in range(shards + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def measure_search(keys: Float32, backend: str, k: int, threads: int, seconds: float, seed: int = 0) -> SearchRate:
    """The rate of a searcher over a sample of a bank, with keys of the bank, disturbed, as queries.

    Args:
        keys: (N, D), N at least 1; at most `SAMPLE_KEYS` of them, evenly spaced, are searched.
        backend: as for `build_searcher`.
        k: results per query.
        threads: of the search.
        seconds: to spend; the first search, which settles how the bank is scanned, is not counted.
        seed: of the disturbance.
    """
    sample = np.array(keys[:: -(-len(keys) // SAMPLE_KEYS)], np.float32)
    random = np.random.default_rng(seed)
    chosen = sample[random.integers(len(sample), size=SAMPLE_QUERIES)]
    spread = float(np.sqrt(np.mean(chosen.astype(np.float64) ** 2))) or 1.0
    queries = (chosen + random.normal(0.0, spread, chosen.shape)).astype(np.float32)
    searcher = build_searcher(sample, backend, threads)
    searcher.search(queries[:64], k)
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        searcher.search(queries, k)
        done += len(queries)
    return SearchRate(done / max(1e-9, time.perf_counter() - started), len(sample))
