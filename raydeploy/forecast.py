"""How long a run will take: measured on a sample of its own work before it starts, set beside the fact at its end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch
from rich import filesize

from raydeploy.connect import RayConfig
from raydeploy.environment import joins_a_cluster
from raydeploy.shard_actor import ShardReport, peak_memory
from xmatch.data.steps import Reader, Shard, Step

STARTUP_S = 12.0
"""Seconds from connecting to Ray until the first worker has imported what it needs: seen on two busy cores."""
PROCESS_BYTES = 1_000_000_000
"""Of a worker before it holds a model or keys: Python, torch, Ray and Arrow. Seen on Linux."""
FIRST_ROWS = 4
"""Rows whose run loads the model and is not counted."""
LARGEST_SHARE = 0.05
"""Of a run's work, what measuring may take at most,"""
FEWEST_ROWS = 64
"""unless it is so little."""


class Sample(NamedTuple):
    """What a step took for some of its work.

    Attributes:
        units: done, such as tokens or images.
        seconds: of the whole sample.
        stages: seconds of each stage of it, as the step counts them.
        load_seconds: until the first rows were done: loading the model and the bank.
        rows: measured.
        shard_rows: of the shard they came from.
        memory_bytes: by which this process grew.
    """

    units: int
    seconds: float
    stages: dict[str, float]
    load_seconds: float
    rows: int
    shard_rows: int
    memory_bytes: int

    def units_in(self, shards: int) -> float:
        """Units of so many shards, if all but the last are like this one, and the last is half of it."""
        return self.units / self.rows * self.shard_rows * (shards - 0.5 if shards > 1 else 1)


class Forecast(NamedTuple):
    """What a run is expected to take.

    Attributes:
        unit: what is counted, in the plural.
        units: of the whole run.
        seconds: from connecting to Ray to the last result.
        stages: seconds of work in each stage, summed over all workers.
        memory_bytes: of one worker; 0: not known.
        basis: what it rests on.
    """

    unit: str
    units: float
    seconds: float
    stages: dict[str, float]
    memory_bytes: float
    basis: str

    def times(self, count: int) -> Forecast:
        """The same work done `count` times, one after the other."""
        stages = {name: value * count for name, value in self.stages.items()}
        return self._replace(units=self.units * count, seconds=self.seconds * count, stages=stages)


class Fact:
    """What a run took so far: its units, stages and tallies summed over workers, and the largest worker's memory."""

    def __init__(self) -> None:
        self.units = 0
        self.stages: dict[str, float] = {}
        self.tallies: Counter[str] = Counter()
        self.notes: dict[str, str] = {}
        self.memory_bytes = 0

    def add(self, report: ShardReport, units: int) -> None:
        """Count a finished shard."""
        if report.seconds:  # else another run had done it
            self.units += units
            for name, seconds in report.seconds.items():
                self.add_stage(name, seconds)
            self.tallies.update(report.tallies)
            self.notes.update(report.notes)
            self.memory_bytes = max(self.memory_bytes, report.memory_bytes)

    def add_stage(self, name: str, seconds: float) -> None:
        """Count seconds of a stage."""
        self.stages[name] = self.stages.get(name, 0.0) + seconds


TOO_LITTLE = "not measured: there is too little work to measure anything"


def can_measure(ray: RayConfig) -> str:
    """Why nothing can be measured before a run; empty where it can."""
    if ray.calibration_s <= 0:
        return "not measured: ray.calibration_s is 0"
    if ray.gpus_per_actor and not torch.cuda.is_available():
        return "not measured: the workers have GPUs, this machine has none"
    return ""


def measure_step(
    step: Step,
    reader: Reader,
    shards: Sequence[Shard],
    count: Callable[[Mapping[str, int]], int],
    seconds: float,
    keep: Callable[[pa.Table], None] = lambda table: None,
) -> Sample | None:
    """Run a step on rows from the middle of its work, in this process.

    Args:
        step: loads on its first call; may count the seconds of its stages in an attribute `seconds`.
        reader: of the shards.
        shards: all of the run's.
        count: units among a step's counts.
        seconds: to spend at most, loading apart.
        keep: is given what the step made.

    Returns:
        None where there is too little work to measure anything.
    """
    if not shards:
        return None
    began_with = peak_memory()
    rows = reader(shards[len(shards) // 2])
    most = min(len(rows), FIRST_ROWS + max(FEWEST_ROWS, int(LARGEST_SHARE * len(rows) * len(shards))))
    if most <= FIRST_ROWS:
        return None
    threads = torch.get_num_threads()
    try:
        began = time.perf_counter()
        step("forecast", rows.slice(0, FIRST_ROWS))
        started = time.perf_counter()
        before, units, done, size = dict(getattr(step, "seconds", {})), 0, FIRST_ROWS, FIRST_ROWS
        took = 0.0
        while done < most and took < seconds:
            part = rows.slice(done, min(size, most - done))
            output = step("forecast", part)
            keep(output.table)
            units += count(output.counts)
            done += len(part)
            took = time.perf_counter() - started
            in_time = (seconds - took) * (done - FIRST_ROWS) / max(1e-9, took)
            size = max(1, min(2 * size, int(in_time)))
    finally:
        torch.set_num_threads(threads)
    stages = {name: value - before.get(name, 0.0) for name, value in getattr(step, "seconds", {}).items()}
    stages = {name: value for name, value in stages.items() if name != "load"}
    growth = peak_memory() - began_with
    return Sample(units, took, stages, started - began, done - FIRST_ROWS, len(rows), growth) if units else None


def forecast_of(
    step: Step,
    reader: Reader,
    shards: Sequence[Shard],
    ray: RayConfig,
    *,
    unit: str,
    count: Callable[[Mapping[str, int]], int],
    memory_bytes: float = 0,
) -> Forecast | str:
    """Measure a step and scale it to all its shards.

    Args:
        step: of the run.
        reader: of its shards.
        shards: all of them.
        ray: where it will run.
        unit: what is counted, in the plural.
        count: units among a step's counts.
        memory_bytes: of one worker, at least.

    Returns:
        The forecast, or why there is none.
    """
    if why_not := can_measure(ray):
        return why_not
    sample = measure_step(step, reader, shards, count, ray.calibration_s)
    if sample is None:
        return TOO_LITTLE
    return forecast(sample, unit, sample.units_in(len(shards)), ray, memory_bytes=memory_bytes)


def with_larger_stage(sample: Sample, stage: str, factor: float) -> Sample:
    """A sample as it would be if one of its stages took `factor` times as long."""
    took = sample.stages.get(stage, 0.0)
    stages = {**sample.stages, stage: took * factor} if stage in sample.stages else sample.stages
    return sample._replace(seconds=sample.seconds + took * (factor - 1), stages=stages)


def forecast(sample: Sample, unit: str, units: float, ray: RayConfig, *, memory_bytes: float = 0) -> Forecast:
    """Scale a sample to a whole run.

    Args:
        sample: measured on one worker's threads.
        unit: what is counted.
        units: of the run.
        ray: how many workers share the work.
        memory_bytes: of one worker, at least.
    """
    workers = float(ray.actors)
    if not joins_a_cluster():  # more threads than cores give nothing
        workers = max(1.0, min(workers, (os.cpu_count() or 1) / max(1.0, ray.cpus_per_actor)))
    scale = units / sample.units
    seconds = sample.seconds * scale / workers + sample.load_seconds + STARTUP_S
    stages = {name: value * scale for name, value in sample.stages.items()}
    basis = f"{sample.units:,} {unit} in {duration(sample.seconds)} on this machine, {STARTUP_S:.0f} s added for Ray"
    return Forecast(unit, units, seconds, stages, max(memory_bytes, PROCESS_BYTES + sample.memory_bytes), basis)


def forecast_rows(found: Forecast | str) -> list[tuple[str, str]]:
    """Rows of a plan: the forecast, or why there is none; nothing where none was tried."""
    if isinstance(found, str):
        return [("expected time", found)] if found else []
    shares = sum(found.stages.values())
    parts = [f"{name} {value / shares:.0%}" for name, value in found.stages.items()] if shares else []
    rows = [("expected time", f"{duration(found.seconds)} for {found.units:,.0f} {found.unit}")]
    rows += [("expected shares", ", ".join(parts))] if parts else []
    rows += [("memory of a worker", byte_size(found.memory_bytes))] if found.memory_bytes else []
    return [*rows, ("measured", found.basis)]


def compared_rows(found: Forecast, fact: Fact, seconds: float) -> list[tuple[str, str]]:
    """Rows of an end report: forecast beside fact.

    A run that found part of its work done is compared by what it did.
    """
    if not fact.units:
        return [("forecast", "nothing was left to do")]
    share = min(1.0, fact.units / found.units) if found.units else 1.0
    expected = found.seconds * share
    note = "" if share > 0.999 else f" (for the {share:.0%} that were left)"
    rows = [("time", f"forecast {duration(expected)}{note}, took {duration(seconds)}, {seconds / expected:.2f} times")]
    rows += [(found.unit, f"forecast {found.units * share:,.0f}, were {fact.units:,}")]
    for name in found.stages:
        if name in fact.stages:
            rows.append((name, f"forecast {duration(found.stages[name] * share)}, took {duration(fact.stages[name])}"))
    if found.memory_bytes and fact.memory_bytes:
        planned, was = byte_size(found.memory_bytes), byte_size(fact.memory_bytes)
        rows.append(("memory of a worker", f"forecast {planned}, was {was}"))
    return rows


def compared_values(found: Forecast, fact: Fact, seconds: float) -> dict[str, object]:
    """The same for `report.json`, in seconds and bytes."""
    return {
        "forecast": {**found._asdict()},
        "fact": {
            "units": fact.units,
            "seconds": seconds,
            "stages": dict(fact.stages),
            "memory_bytes": fact.memory_bytes,
        },
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"


def byte_size(count: float) -> str:
    """Bytes as a person says them."""
    return filesize.decimal(round(count))
