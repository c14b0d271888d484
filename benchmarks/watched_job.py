"""Run a job on a Ray with an object store of a given size, and record the most memory that each process took.

    python benchmarks/watched_job.py --store_mb 80 --record peaks.json -- tokenize_corpus --corpus.path … --output …

Peaks are the system's own (VmHWM), and so hold the pages of the object store that a process has touched. Beside them
stands the most that a process had of its own (RssAnon), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WORKER = re.compile(r"ray::(\w+)")
EVERY_S = 0.1


class Watch:
    """The largest resident sets of this process and of Ray's workers below it, by what they do."""

    def __init__(self) -> None:
        self.peaks: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self.own["driver"] = max(self.own["driver"], status_of(os.getpid(), "RssAnon"))
            for pid in _below(os.getpid()):
                with suppress(OSError):  # it may end at any time
                    found = WORKER.match(Path(f"/proc/{pid}/cmdline").read_text())
                    if found:
                        kind = "actor" if found[1] == "MapWorker" else "task"
                        self.peaks[kind] = max(self.peaks[kind], status_of(pid, "VmHWM"))
                        self.own[kind] = max(self.own[kind], status_of(pid, "RssAnon"))


def status_of(pid: int, name: str) -> int:
    """Bytes that the system tells of a process; VmHWM leaves out its parent's peak, which getrusage may tell."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0  # none of a process that is ending


def _below(root: int) -> list[int]:
    """Processes below one, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    found = [root]
    for other in found:
        found += [child for child, parent in parents.items() if parent == other]
    return found[1:]


def spilled_bytes() -> int:
    """Bytes that the object store of the Ray this process is connected to has written to disk."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return int(reply.store_stats.spilled_bytes_total)


def main() -> int:
    from raydeploy.connect import RayConfig, connect

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store_mb", type=int, required=True)
    parser.add_argument("--record", required=True)
    parser.add_argument("job", nargs="+")
    arguments = parser.parse_args()
    name, *argv = arguments.job
    job = importlib.import_module(f"jobs.{name}")
    with connect(RayConfig(num_cpus=2, object_store_mb=arguments.store_mb)), Watch() as watch:
        before = status_of(os.getpid(), "VmHWM")
        code = job.main(argv)
        spilled = spilled_bytes()
    record = {
        "code": code,
        "driver_bytes": status_of(os.getpid(), "VmHWM"),
        "driver_before_bytes": before,
        "worker_bytes": dict(watch.peaks),
        "own_bytes": dict(watch.own),
        "spilled_bytes": spilled,
    }
    Path(arguments.record).write_text(json.dumps(record))
    return code


if __name__ == "__main__":
    sys.exit(main())
