"""Steps for tests of the streams: they double a column, and can take their own process down once."""

from __future__ import annotations

import os
import signal
import time

import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data.steps import Shard, StepOutput, quarantine_table
from xmatch.errors import InputError


def read_range(shard: Shard) -> pa.Table:
    """The numbers of a shard."""
    return pa.table({"n": pa.array(range(shard.start, shard.stop), pa.int64())})


class Double:
    """Doubles n; numbers that end in 7 (in base 8) are quarantined.

    It can kill or freeze its worker once, at a shard, and dies of or hangs with certain numbers always.
    """

    def __init__(
        self,
        *,
        die_at: str = "",
        freeze_at: str = "",
        flag: str = "",
        harmful: tuple[int, ...] = (),
        hanging: tuple[int, ...] = (),
        slow_s: float = 0.0,
    ) -> None:
        self.die_at, self.freeze_at, self.flag, self.slow_s = die_at, freeze_at, flag, slow_s
        self.harmful, self.hanging = set(harmful), set(hanging)

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        time.sleep(self.slow_s)
        numbers = set(rows["n"].to_pylist())
        if (shard_id == self.die_at and self._first()) or numbers & self.harmful:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard_id == self.freeze_at and self._first():
            os.kill(os.getpid(), signal.SIGSTOP)
        if numbers & self.hanging:
            time.sleep(10_000)
        good = rows.filter(pc.not_equal(pc.bit_wise_and(rows["n"], 7), 7))
        bad = [(str(n), shard_id, "ends in 7") for n in rows["n"].to_pylist() if n & 7 == 7]
        return StepOutput(pa.table({"n": pc.multiply(good["n"], 2)}), {"rows": len(good)}, quarantine_table(bad))

    def _first(self) -> bool:
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class Refuse:
    """Refuses one shard's input."""

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        if shard_id == "part-00001":
            raise InputError("row 3 holds a negative number")
        return StepOutput(rows, {"rows": len(rows)}, quarantine_table())


def shards(count: int, size: int = 16) -> list[Shard]:
    """Shards of consecutive numbers."""
    return [Shard(f"part-{i:05d}", "numbers", i * size, (i + 1) * size) for i in range(count)]


def tree(folder: str) -> dict[str, bytes]:
    """Every file of a run's output but those of run/, by relative path."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            relative = os.path.relpath(path, folder)
            if not relative.startswith("run" + os.sep):
                with open(path, "rb") as source:
                    found[relative] = source.read()
    return found
