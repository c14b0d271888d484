"""How approximate indexes are built and asked, and what follows from the size of a bank."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from xmatch.errors import InputError

Kind = Literal["ivf", "ivfpq", "hnsw", "cagra"]
KINDS: tuple[Kind, ...] = ("ivf", "ivfpq", "hnsw", "cagra")
KEYS_PER_LIST = 39
"""Keys that k-means wants for each centre, as faiss has it."""
CODE_CENTRES = 256
"""Of each part of a product quantiser: one byte."""


@dataclass(frozen=True)
class ApproximateConfig:
    """How an index is built and asked; what is not given follows from the bank (`settle`)."""

    lists: int | None = None
    """ivf, ivfpq: parts of the bank. The power of two next to 4 sqrt(N), with 39 keys to train each at least."""
    probes: int | None = None
    """ivf, ivfpq: parts that a query looks into: one in 16, and 8 at least."""
    train_keys: int | None = None
    """ivf, ivfpq: keys of the sample that is trained on: 64 for each part, 16,384 at least, N at most."""
    code_bytes: int | None = None
    """ivfpq: bytes of a key; divides D. The largest divisor up to D / 4."""
    links: int = 32
    """hnsw, cagra: neighbours of a key in the graph."""
    build_effort: int = 200
    """hnsw: candidates looked at when a key is linked (efConstruction)."""
    search_effort: int = 128
    """hnsw, cagra: candidates kept while a query walks, at least as many as are asked for (efSearch)."""
    candidates_per_result: int | None = None
    """Candidates scored exactly for each result: 4, and 16 for ivfpq, whose own scores are coarse."""
    seed: int = 0
    """Of the sample and of k-means."""
    threads: int = 1
    """Of building and searching; with 1 the same bank gives the same index."""


def _check_given(config: ApproximateConfig, kind: Kind, count: int, width: int) -> None:
    given = {name: value for name, value in asdict(config).items() if value is not None}
    if any(value < (0 if name == "seed" else 1) for name, value in given.items()):
        raise InputError(f"settings of approximate search must be 1 or more, and the seed 0 or more, got {given}.")
    fewest = {"ivf": KEYS_PER_LIST, "ivfpq": KEYS_PER_LIST * CODE_CENTRES}.get(kind, 2)
    if count < fewest or width < 1:
        raise InputError(
            f"approximate search of kind {kind!r} needs at least {fewest:,} keys of width 1 or more, got {count:,} of "
            f"width {width}. Use exact search: it is fast at this size."
        )


def _default_lists(count: int) -> int:
    """The power of two nearest to 4 sqrt(N), as long as every list has keys enough to be trained on."""
    lists = 1 << max(0, round(math.log2(max(1.0, min(4 * math.sqrt(count), count / KEYS_PER_LIST)))))
    while lists * KEYS_PER_LIST > count:
        lists //= 2
    return lists


def settle(config: ApproximateConfig, kind: Kind, count: int, width: int) -> ApproximateConfig:
    """Fill in what follows from N and D.

    Raises:
        InputError: there are too few keys to train, or a setting does not fit them.
    """
    _check_given(config, kind, count, width)
    lists = config.lists or _default_lists(count)
    train = config.train_keys or min(count, max(1 << 14, 64 * lists))
    code_bytes = config.code_bytes or max(m for m in range(1, max(1, width // 4) + 1) if width % m == 0)
    settled = replace(
        config,
        lists=lists,
        probes=config.probes or min(lists, max(8, lists // 16)),
        train_keys=train,
        code_bytes=code_bytes,
        candidates_per_result=config.candidates_per_result or (16 if kind == "ivfpq" else 4),
    )
    if kind in ("ivf", "ivfpq") and not (train <= count and lists * KEYS_PER_LIST <= train):
        raise InputError(
            f"{lists:,} lists want a sample of at least {lists * KEYS_PER_LIST:,} keys to be trained on, and one that "
            f"the bank holds; got train_keys {train:,} of {count:,} keys. Give fewer lists, or other train_keys."
        )
    if kind == "ivfpq" and width % code_bytes:
        raise InputError(f"code_bytes is {code_bytes}, which does not divide the width of the keys, {width}.")
    return settled
