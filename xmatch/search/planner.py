"""What a search costs before it runs: bytes, multiplications, and its layout over actors.

Shapes: Q queries, N keys, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from xmatch.errors import InputError
from xmatch.search.searcher import fastest_backend

SCAN_BYTES = {"native": 2, "torch": 2, "triton": 2, "faiss": 4}
"""Bytes of one value in a backend's own copy of the keys, at most: bf16, or float32 in faiss."""
MEMORY_SHARE = 0.6
"""Of the memory an actor may use, what its keys may take; the rest is for the model, batches and buffers."""
SAMPLE_KEYS = 1 << 16


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
