"""What every job shares: settings, plan, connection, progress, end report, and exit codes.

Exit codes: 0 done; 1 a defect (with its traceback); 2 bad input or settings (one paragraph); 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from raydeploy.config import load_config, to_yaml
from raydeploy.connect import RayConfig, connect
from raydeploy.environment import is_submitted
from raydeploy.forecast import Fact, Forecast, compared_rows, compared_values, forecast_rows
from raydeploy.object_store import split_uri
from raydeploy.shard_actor import ShardReport
from raydeploy.versions import versions
from xmatch.data import files
from xmatch.errors import InputError

LINE_EVERY_S = 5.0
"""Seconds between progress lines where there is no terminal."""


class JobConfig(Protocol):
    """What every job's configuration has."""

    @property
    def output(self) -> str:
        """Folder or URI prefix of the results."""
        ...

    @property
    def ray(self) -> RayConfig:
        """Where the job runs."""
        ...


C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        rows: (name, value), for a person.
        forecast: how long it will take, or why that is not known; "" where it was not asked.
        extra_cpus: of actors beside the workers that `ray.actors` counts.
    """

    rows: list[tuple[str, str]]
    forecast: Forecast | str = ""
    extra_cpus: float = 0


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        rows: (name, value), for a person.
        values: for a program.
        text: shown below the rows.
        fact: to be set beside a forecast.
    """

    rows: list[tuple[str, str]]
    values: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    fact: Fact | None = None


class Progress:
    """Counts finished items and shows rate and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int | None, unit: str, console: Console) -> None:
        self.total, self.unit, self.console = total, unit, console
        self.done = 0
        self.started = time.monotonic()
        self._last_line = self.started
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def advance(self, count: int) -> None:
        """Count `count` more items."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(self._line(), highlight=False)

    def figures(self, row: dict[str, Any]) -> None:
        """Count one item and show its figures, such as an epoch's loss and recall."""
        shown = {k: v for k, v in row.items() if k in ("epoch", "loss", "rsum", "samples_per_s")}
        self.console.print("  ".join(f"{k} {v:.3g}" if k == "loss" else f"{k} {v:,.0f}" for k, v in shown.items()))
        self.advance(1)

    def rates(self) -> list[tuple[str, str]]:
        """Throughput as rows of a report."""
        seconds = max(1e-9, time.monotonic() - self.started)
        return [("time", f"{seconds:,.1f} s"), ("throughput", f"{self.done / seconds:,.1f} {self.unit}/s")]

    def _line(self) -> str:
        seconds = time.monotonic() - self.started
        rate = self.done / max(1e-9, seconds)
        pace = f"{rate:,.1f}/s" if rate >= 0.1 or not rate else f"{1 / rate:,.0f} s each"
        if not self.total:
            return f"{self.done:,} {self.unit}, {pace}"
        left = (self.total - self.done) / rate if rate else float("inf")
        eta = f", {left:,.0f} s left" if rate else ""
        return f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%}), {pace}{eta}"

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Show the bar while the block runs, where there is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=self.console) as bar:
            self._bar, self._task = bar, bar.add_task(self.unit, total=self.total)
            yield self


class Run:
    """What a job's body is given: progress and a log."""

    def __init__(self, name: str, output: str, console: Console) -> None:
        self.name, self.output, self.console = name, output, console
        path = files.join(output, "run", "log.jsonl")
        is_old = files.is_uri(output) and files.exists(path)
        self._events: list[str] = files.read_text(path).splitlines() if is_old else []
        self._written = 0.0

    @contextmanager
    def progress(self, total: int | None, unit: str) -> Iterator[Progress]:
        """Progress over `total` items (None: not known)."""
        with Progress(total, unit, self.console).shown() as progress:
            yield progress

    def log(self, event: str, **fields: Any) -> None:
        """Add one structured line to <output>/run/log.jsonl; in an object store not more often than now and then."""
        self._events.append(json.dumps({"event": event, "time": time.time(), **fields}))
        path = files.join(self.output, "run", "log.jsonl")
        if not files.is_uri(path):
            with open(path, "a", encoding="utf-8") as log:
                log.write(self._events.pop() + "\n")
        elif event != "shard" or time.monotonic() - self._written >= LINE_EVERY_S:
            self._written = time.monotonic()
            files.write_bytes(path, ("\n".join(self._events) + "\n").encode())

    def finished(self, report: ShardReport) -> None:
        """Log a finished shard."""
        seconds = {name: round(value, 6) for name, value in report.seconds.items()}
        self.log("shard", shard=report.shard_id, counts=report.counts, seconds=seconds, quarantined=report.quarantined)


def run_job(
    name: str,
    config_class: type[C],
    *,
    plan: Callable[[C], Plan],
    body: Callable[[C, Run], Report],
    description: str,
    argv: Sequence[str] | None = None,
    uses_ray: bool = True,
) -> int:
    """Run one job from its command line.

    Args:
        name: of the job's file.
        config_class: its settings; they have `output` and `ray`.
        plan: says what the run would do, from the input alone; also finds bad input before anything starts.
        body: does it, connected to Ray.
        description: first words of `--help`.
        argv: arguments; None takes the process's own.
        uses_ray: false for a job that runs in this process alone.

    Returns:
        The exit code.
    """
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        loaded = load_config(config_class, argv, name=name, description=description.strip())
        if loaded.print_only:
            sys.stdout.write(to_yaml(loaded.config))
            return 0
        check_output(loaded.config.output)
        planned = plan(loaded.config)
        show_rows(console, f"{name}: plan", planned.rows + forecast_rows(planned.forecast))
        if loaded.plan_only:
            return 0
        report, seconds = _execute(name, loaded.config, planned, body, console, uses_ray)
        show_rows(console, f"{name}: done", report.rows)
        if isinstance(planned.forecast, Forecast) and report.fact:
            show_rows(console, f"{name}: forecast beside fact", compared_rows(planned.forecast, report.fact, seconds))
        if report.text:
            console.print(report.text, highlight=False, markup=False)
        return 0
    except InputError as error:
        errors.print(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept: run the same command again to go on.")
        return 130
    except Exception:
        traceback.print_exc()
        errors.print(f"error: {name} failed with a defect, not with bad input; the traceback is above.")
        return 1


def _execute(
    name: str, config: C, planned: Plan, body: Callable[[C, Run], Report], console: Console, uses_ray: bool
) -> tuple[Report, float]:
    """The report of the run, and its seconds."""
    output = config.output
    files.write_bytes(files.join(output, "run", "config.yaml"), to_yaml(config).encode())
    files.write_json(files.join(output, "run", "versions.json"), versions())
    run = Run(name, output, console)
    run.log("started", job=name)
    started = time.monotonic()
    try:
        with connect(config.ray, planned.extra_cpus) if uses_ray else nullcontext():
            report = body(config, run)
    except BaseException as error:
        run.log("failed", error=str(error) or type(error).__name__)
        raise
    seconds = time.monotonic() - started
    record = {"job": name, "seconds": seconds, "rows": dict(report.rows), "values": report.values}
    if isinstance(planned.forecast, Forecast) and report.fact:
        record |= compared_values(planned.forecast, report.fact, seconds)
    files.write_json(files.join(output, "run", "report.json"), record)
    run.log("finished", job=name, seconds=seconds)
    return report, seconds


def check_output(output: str) -> None:
    """Check that results can be written, before any work.

    Raises:
        InputError: the place is not writable, is a file, or is relative in a submitted job; or a URI that no results
            can go to.
    """
    if not output:
        raise InputError("output is empty; give the folder for the results.")
    if is_submitted() and not files.is_uri(output) and not os.path.isabs(output):
        raise InputError(
            f"output {output!r} is relative, but a submitted job runs in a temporary copy of the project, which is "
            "deleted afterwards. Give an absolute path on shared storage, or a URI such as s3://bucket/run."
        )
    if files.is_uri(output):
        if not output.startswith("file://"):
            split_uri(output)
        return
    folders = (files.join(output, "run"), output)
    made = [folder for folder in folders if not os.path.isdir(folder)]
    probe = files.join(output, "run", ".probe")
    files.write_bytes(probe, b"")
    os.unlink(probe)
    for folder in made:  # a run that is refused later leaves nothing behind
        os.rmdir(folder)


def show_rows(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Rows of (name, value) as a table."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
