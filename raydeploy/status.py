"""What state a run is in, read from its folder alone, without Ray."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from raydeploy.forecast import duration
from xmatch.data import files
from xmatch.errors import InputError

QUIET_S = 120.0
"""Seconds without a word after which a run that has not ended counts as interrupted."""


class RunState(NamedTuple):
    """What a run's folder says.

    Attributes:
        job: its name.
        state: finished, failed, running, interrupted, or planned only.
        shards: of the run; 0: not known, or a run without shards.
        done: of them.
        counts: of the manifest, or of the shards done so far.
        quarantined: items left out or repaired so far.
        seconds: since the last event of its log; of the whole run where it finished.
        error: what it failed of.
    """

    job: str
    state: str
    shards: int
    done: int
    counts: dict[str, int]
    quarantined: int
    seconds: float
    error: str


def read_state(folder: str, now: float | None = None) -> RunState:
    """The state of a run.

    Args:
        folder: its output, local or s3://.
        now: seconds since the epoch; the clock's when not given.

    Raises:
        InputError: it is no run's folder.
    """
    events = _events(folder)
    if not events:
        raise InputError(f"{folder!r} is no run's folder: it has no run/log.jsonl. Give the --output of a job.")
    plan, started = files.join(folder, "run", "shards.json"), _latest_start(events)
    shards = int(files.read_json(plan)["shards"]) if files.exists(plan) else 0
    done = len(files.list_files(files.join(folder, "completions"), ".json"))
    manifest = files.join(folder, "manifest.json")
    counts: dict[str, int] = {}
    quarantined = sum(event.get("quarantined", 0) for event in events if event["event"] == "shard")
    for event in (event for event in events if event["event"] == "shard"):
        for name, count in event["counts"].items():
            counts[name] = counts.get(name, 0) + count
    if files.exists(manifest):
        content = files.read_json(manifest)
        counts, quarantined = content["counts"], content.get("quarantined", 0)
    last = events[-1]
    silent = (time.time() if now is None else now) - last["time"]
    error, state, seconds = "", "running" if silent < QUIET_S else "interrupted", silent
    if last["event"] == "finished":
        state, seconds = "finished", last["seconds"]
    elif last["event"] == "failed":
        state, error = "failed", last["error"]
    return RunState(started["job"], state, shards, done, counts, quarantined, seconds, error)


def state_rows(found: RunState) -> list[tuple[str, str]]:
    """Rows for a person."""
    rows = [("job", found.job), ("state", found.state)]
    if found.state == "finished":
        rows.append(("took", duration(found.seconds)))
    else:
        rows.append(("last word", f"{duration(found.seconds)} ago"))
    if found.shards:
        rows.append(("shards", f"{found.done:,} of {found.shards:,} done ({found.done / found.shards:.0%})"))
    rows += [(name, f"{count:,}") for name, count in found.counts.items()]
    rows.append(("quarantined", f"{found.quarantined:,}"))
    if found.error:
        rows.append(("error", found.error))
    if found.state in ("failed", "interrupted"):
        rows.append(("to go on", "run the same command again: finished shards are kept"))
    return rows


def _events(folder: str) -> list[dict[str, Any]]:
    path = files.join(folder, "run", "log.jsonl")
    if not files.exists(path):
        return []
    lines = files.read_text(path).split("\n")[:-1]  # what follows the last line's end is not whole
    return [json.loads(line) for line in lines]


def _latest_start(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in reversed(events) if event["event"] == "started")
