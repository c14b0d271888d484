"""Real jobs in processes of their own, killed with everything that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def job(name: str, words: Sequence[str]) -> list[str]:
    """The command line of a job."""
    return [sys.executable, f"jobs/{name}.py", *words]


def own_environment() -> dict[str, str]:
    """This environment, without the Ray that the tests may be part of."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def run_job_process(command: Sequence[str]) -> None:
    """Run a command to its end; it must succeed."""
    subprocess.run(command, env=own_environment(), check=True, stdout=subprocess.DEVNULL, timeout=400)


def kill_when_done_begins(command: Sequence[str], folder: Path, completions: str) -> dict[Path, int]:
    """Start a command and SIGKILL it, and all that it started, as soon as one shard is finished.

    Args:
        command: that writes to the folder.
        folder: the job's output.
        completions: pattern below the folder of what is there once a shard is finished.

    Returns:
        When each finished shard's completion was written, in ns; at least one.
    """
    process = subprocess.Popen(command, env=own_environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    for _ in range(12_000):
        if list(folder.glob(completions)) or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the job ended before it was killed"
    found = {path: path.stat().st_mtime_ns for path in folder.glob(completions)}
    assert found, "killed before a shard was finished"
    time.sleep(2)  # what Ray left running notices that its driver is gone
    return found


def require_kept(before: dict[Path, int]) -> None:
    """No finished shard was done again."""
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was done again"
