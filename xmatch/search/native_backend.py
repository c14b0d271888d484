"""The native extension: keys packed once in low precision, scanned, certified and decided in C++ (sources in native/).

The only module that knows `_vokenray_search`. It may be absent: it is built where a compiler is there.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import subprocess
import sys
import time
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.search.exact import Found, Keys, SearchCounts
from xmatch.search.scores import Float32

Kind = Literal["int8", "bf16", "split"]

TIGHTER: dict[Kind, Kind] = {"int8": "bf16", "bf16": "split"}
"""What scans with a tighter bound, at a higher price for each product."""
PRODUCTS: dict[Kind, int] = {"bf16": 1, "split": 3}
"""Products in bfloat16 for each number of a key."""
WIDEST_INT8 = 16384
SAMPLE = 64
"""Queries that decide how the bank is scanned."""
FEWEST_SAMPLED = 16
TIMED_KEYS = 8192
"""Keys that tell what a product in bfloat16 costs; they must be few, for they are packed for that alone."""
WORTH_PACKING = 0.8
"""A tighter kind is packed and tried when its products alone would take less than this part of the time now taken."""


UNPROVEN = frozenset({"amx"})
"""Instruction sets whose kernels were never run on hardware by us: a child process tries them before they are used."""
TRIAL = """
import sys
import numpy as np
import _vokenray_search as native
random = np.random.default_rng(0)
keys = random.standard_normal((200, 150), dtype=np.float32)
queries = random.standard_normal((70, 150), dtype=np.float32)
for kind in ("int8", "bf16", "split"):
    found = []
    for name in ("portable", sys.argv[1]):
        scores, ids = np.empty((70, 3), np.float32), np.empty((70, 3), np.int64)
        native.search(native.pack(keys, kind), keys, queries, 1, name, scores, ids)
        found.append((scores.tobytes(), ids.tobytes()))
    assert found[0] == found[1], kind
"""
TRIAL_S = 60.0
logger = logging.getLogger(__name__)


def instruction_sets(kind: Kind) -> tuple[str, ...]:
    """What this machine can scan `kind` with, fastest last; empty without the extension."""
    if importlib.util.find_spec("_vokenray_search") is None:
        return ()
    names: tuple[str, ...] = _load().instruction_sets(kind)
    return tuple(name for name in names if name not in UNPROVEN or works(name))


@functools.cache
def works(name: str) -> bool:
    """Whether an instruction set gives the right answers here, found out in a child process, which it may crash."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRIAL, name]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRIAL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        done = subprocess.CompletedProcess(command, -1, "", str(error))
    if done.returncode:
        said = done.stderr.strip().rsplit("\n", 1)[-1]
        logger.warning(
            "the %s kernels do not work here (exit code %s %s); slower ones are used", name, done.returncode, said
        )
    return not done.returncode


def is_fast() -> bool:
    """Whether the extension is there, and this machine has instructions that make it worth while."""
    return instruction_sets("int8")[-1:] not in ((), ("portable",))


class PackedBanks(Protocol):
    """Keeps packed banks of one matrix of keys, its rows in the order in which the scan gets them."""

    def load(self, kind: Kind) -> tuple[bytes, npt.NDArray[np.uint8]] | None:
        """The header and the tiles, of shape (n,) at a multiple of 64 bytes in memory, or None where there are none."""
        ...

    def save(self, kind: Kind, header: bytes, tiles: npt.NDArray[np.uint8]) -> None:
        """Keeps them for later; `tiles`, read-only of shape (n,), are the scan's own memory, to be written at once."""
        ...


class NativeScan:
    """Certified search by the native extension.

    Whether int8, bf16 or split scans the bank is decided by timing the first batch: int8 is faster, but its wider bound
    leaves more candidates, many more on some banks. The answer does not depend on it.

    Args:
        keys: (N, D) and their norms; float32, float16 or bfloat16, C-contiguous.
        threads: threads of a search.
        kind: `int8`, `bf16` or `split`; measured when not given.
        instructions: one of `instruction_sets`; the fastest when not given.
        packed: where packed banks are looked for first, and kept; memory when not given.

    Raises:
        InputError: the extension is not installed.
    """

    def __init__(
        self,
        keys: Keys,
        threads: int,
        kind: Kind | None = None,
        instructions: str | None = None,
        *,
        packed: PackedBanks | None = None,
    ) -> None:
        if not instruction_sets("bf16"):
            raise InputError(
                "the search backend 'native' needs the extension _vokenray_search, which is not installed. Install "
                "vokenray anew where a C++ compiler is found (make install), or choose auto, torch or faiss."
            )
        self.threads, self.kind, self._rows, self._packed = threads, kind, _readable(keys.rows), packed
        self._module, self._instructions = _load(), instructions
        self._banks: dict[Kind, Any] = {}
        if self._rows.shape[1] > WIDEST_INT8:
            self.kind = "bf16"

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        if self.kind is None and len(queries) >= FEWEST_SAMPLED:
            self.kind = self._fastest(queries[:SAMPLE], k)
            self._banks = {self.kind: self._bank(self.kind)}
        return self._search(queries, k, self.kind or "int8")

    def _fastest(self, queries: Float32, k: int) -> Kind:
        """Tries tighter kinds as long as they might gain, and takes the fastest of those tried."""
        kind: Kind = "int8"
        taken = {kind: self._seconds(self._bank(kind), self._rows, queries, k, kind)}
        few = self._rows[:TIMED_KEYS]
        product = self._seconds(self._module.pack(few, "bf16"), few, queries, 1, "bf16") / len(few)
        while kind in TIGHTER:
            kind = TIGHTER[kind]
            if PRODUCTS[kind] * product * len(self._rows) > WORTH_PACKING * min(taken.values()):
                break
            taken[kind] = self._seconds(self._bank(kind), self._rows, queries, k, kind)
        return min(taken, key=lambda tried: taken[tried])

    def _seconds(self, bank: Any, rows: npt.NDArray[Any], queries: Float32, k: int, kind: Kind) -> float:
        """The better of two searches of rows (N, D) on one thread: the first also brings the bank into memory."""
        out = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        times = []
        for _ in range(2):
            start = time.thread_time()  # not the clock: on a busy machine that chose wrongly
            self._module.search(bank, rows, queries, 1, self._set_of(kind), *out)
            times.append(time.thread_time() - start)
        return min(times)

    def _search(self, queries: Float32, k: int, kind: Kind) -> Found:
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        counts = self._module.search(
            self._bank(kind), self._rows, queries, self.threads, self._set_of(kind), scores, rows
        )
        return Found(scores, rows, SearchCounts(len(queries), *counts))

    def _bank(self, kind: Kind) -> Any:
        if kind not in self._banks:
            self._banks[kind] = self._restored(kind) or self._packed_anew(kind)
        return self._banks[kind]

    def _restored(self, kind: Kind) -> Any:
        found = self._packed.load(kind) if self._packed else None
        if found is None:
            return None
        try:
            bank = self._module.restore(*found)
        except ValueError:  # of another version of the extension
            return None
        return bank if (bank.kind, bank.count, bank.width) == (kind, *self._rows.shape) else None

    def _packed_anew(self, kind: Kind) -> Any:
        bank = self._module.pack(self._rows, kind)
        if self._packed:
            self._packed.save(kind, bank.header(), np.frombuffer(bank.tiles, np.uint8))
        return bank

    def _set_of(self, kind: Kind) -> str:
        return self._instructions or instruction_sets(kind)[-1]


def _readable(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows (N, D) whose type the buffer protocol knows: it lacks bfloat16, which the extension takes as its bits."""
    return rows.view(np.uint16) if rows.dtype.name == "bfloat16" else rows


def _load() -> Any:
    import _vokenray_search

    return _vokenray_search
