"""The native extension: keys packed once as int8 or bf16, scanned, certified and decided in C++ (sources in native/).

The only module that knows `_vokenray_search`. It may be absent: it is built where a compiler is there.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import numpy as np

from xmatch.errors import InputError
from xmatch.search.exact import Found, Keys, SearchCounts
from xmatch.search.scores import Float32

Kind = Literal["int8", "bf16"]

WIDEST_INT8 = 16384
SAMPLE = 64
"""Queries that decide between int8 and bf16."""
FEWEST_SAMPLED = 16
RATES: dict[str, tuple[float, float]] = {"portable": (1.0, 1.0), "avx512": (380.0, 240.0), "amx": (700.0, 500.0)}
"""Multiply-adds a nanosecond of the int8 and the bf16 scan on one core. Rough figures set by hand: avx512 from first
trials, amx from what an earlier prototype reached. They steer speed only."""
RESCORE_NS, CANDIDATE_NS = 250.0, 40.0
"""What a candidate costs on one core: a double-precision score of a row from memory, and being noted at all. Estimates;
with them the choice was right in the eight cells of benchmarks/results/2026-11-21-search.md."""


def instruction_sets(kind: Kind) -> tuple[str, ...]:
    """What this machine can scan `kind` with, fastest last; empty without the extension."""
    if importlib.util.find_spec("_vokenray_search") is None:
        return ()
    names: tuple[str, ...] = _load().instruction_sets(kind)
    return names


def is_fast() -> bool:
    """Whether the extension is there, and this machine has instructions that make it worth while."""
    return instruction_sets("int8")[-1:] not in ((), ("portable",))


class NativeScan:
    """Certified search by the native extension.

    Which of int8 and bf16 scans the bank is decided by the first batch: int8 is faster, but its wider bound leaves more
    candidates, many more on some banks. The answer does not depend on it.

    Args:
        keys: (N, D) and their norms.
        threads: threads of a search.
        kind: `int8` or `bf16`; measured when not given.
        instructions: one of `instruction_sets`; the fastest when not given.

    Raises:
        InputError: the extension is not installed.
    """

    def __init__(self, keys: Keys, threads: int, kind: Kind | None = None, instructions: str | None = None) -> None:
        if not instruction_sets("bf16"):
            raise InputError(
                "the search backend 'native' needs the extension _vokenray_search, which is not installed. Install "
                "vokenray anew where a C++ compiler is found (make install), or choose auto, torch or faiss."
            )
        self.threads, self.kind, self._keys = threads, kind, keys
        self._module, self._instructions = _load(), instructions
        self._banks: dict[Kind, Any] = {}
        if keys.rows.shape[1] > WIDEST_INT8:
            self.kind = "bf16"

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        if self.kind is None and len(queries) >= FEWEST_SAMPLED:
            self.kind = self._cheaper(queries[:SAMPLE], k)
            self._banks = {self.kind: self._bank(self.kind)}
        return self._search(queries, k, self.kind or "int8")

    def _cheaper(self, queries: Float32, k: int) -> Kind:
        counts = self._search(queries, k, "int8").counts
        int8_rate, bf16_rate = RATES[self._set_of("int8")][0], RATES[self._set_of("bf16")][1]
        pairs = self._keys.rows.size
        int8 = pairs / int8_rate + (RESCORE_NS * counts.rescored + CANDIDATE_NS * counts.candidates) / len(queries)
        if counts.fallbacks or int8 > pairs / bf16_rate + k * (RESCORE_NS + CANDIDATE_NS) * 1.5:
            return "bf16"
        return "int8"

    def _search(self, queries: Float32, k: int, kind: Kind) -> Found:
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        counts = self._module.search(
            self._bank(kind), self._keys.rows, queries, self.threads, self._set_of(kind), scores, rows
        )
        return Found(scores, rows, SearchCounts(len(queries), *counts))

    def _bank(self, kind: Kind) -> Any:
        if kind not in self._banks:
            self._banks[kind] = self._module.pack(self._keys.rows, kind)
        return self._banks[kind]

    def _set_of(self, kind: Kind) -> str:
        return self._instructions or instruction_sets(kind)[-1]


def _load() -> Any:
    import _vokenray_search

    return _vokenray_search
