"""A run that ends, as if by power cut, before or after any single step of the commit protocol; then it is run again.

    python crashes.py FOLDER_OR_URI local|store

Every crash is a process of its own, forked from this one. Prints one JSON object: how many points there were, and the
names of those after which the second run did not give what an undisturbed one gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from toy_steps import Double, read_range, shards

from raydeploy import ledger as ledger_module
from raydeploy import object_store
from raydeploy.ledger import Ledger
from raydeploy.shard_actor import ShardActor
from xmatch.data import files

COUNT = 2
CRASHED = 77
"""Exit code of a process that was ended on purpose."""


class Steps:
    """Counts the protocol's steps and ends the process at one of them; -1: at none."""

    def __init__(self, crash_at: int) -> None:
        self.crash_at = crash_at
        self.names: list[str] = []

    def point(self, name: str) -> None:
        if len(self.names) == self.crash_at:
            os._exit(CRASHED)
        self.names.append(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            self.point(f"before {name}")
            result = function(*given, **named)
            self.point(f"after {name}")
            return result

        return watched

    def in_halves(self, write: Callable[..., None]) -> Callable[..., None]:
        """A table or a JSON file of which only the first half is written when the crash falls."""

        def written(content: Any, sink: Any, **named: Any) -> None:
            whole = pa.BufferOutputStream()
            write(content, whole, **named)
            data = whole.getvalue().to_pybytes()
            sink.write(data[: len(data) // 2])
            self.point("half written")
            sink.write(data[len(data) // 2 :])

        return written


def watch_local(steps: Steps) -> None:
    """Every call by which a local file or name comes into being, is filled, or goes."""
    for name in ("replace", "link", "unlink", "fsync", "makedirs"):
        setattr(os, name, steps.around(name, getattr(os, name)))
    files.pq.write_table = steps.in_halves(files.pq.write_table)
    fill = steps.in_halves(lambda data, sink: sink.write(data))

    def write_bytes(path: str, data: bytes) -> None:
        with files.open_atomic(path) as sink:
            fill(data, sink)

    files.write_bytes = write_bytes


def watch_store(steps: Steps) -> None:
    """Every request by which an object comes into being."""
    files._upload = steps.around("upload", files._upload)
    object_store._put_object = steps.around("conditional put", object_store._put_object)
    ledger_module.abort_uploads = steps.around("abort uploads", ledger_module.abort_uploads)


def work(output: str) -> None:
    """What driver and worker of a small run do, in the order in which they do it."""
    ledger = Ledger(output, {"kind": "crash test"})
    actor = ShardActor(Double(), output, "parquet")
    done = ledger.done()
    for shard in shards(COUNT):
        if shard.id not in done:
            actor.run_shard(shard.id, read_range(shard))
    ledger.finish([shard.id for shard in shards(COUNT)])


def content(output: str) -> dict[str, str]:
    """Hash of every file of a run."""
    filesystem, inside = files.filesystem_of(output)
    found = {}
    for info in filesystem.get_file_info(pafs.FileSelector(inside, recursive=True)):
        if info.type == pafs.FileType.File:
            with filesystem.open_input_stream(info.path) as stream:
                found[info.path.removeprefix(inside)] = hashlib.sha256(stream.read()).hexdigest()
    return found


def forked(task: Callable[[], Any]) -> tuple[int, Any]:
    """Exit code of a forked process, and what the task in it gave."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            result = task()
            with os.fdopen(writing, "w") as pipe:
                json.dump(result, pipe)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else None


def main() -> None:
    base, watch = sys.argv[1], {"local": watch_local, "store": watch_store}[sys.argv[2]]

    def run(output: str, crash_at: int) -> list[str]:
        steps = Steps(crash_at)
        watch(steps)
        work(output)
        return steps.names

    code, names = forked(lambda: run(f"{base}/undisturbed", -1))
    _, expected = forked(lambda: content(f"{base}/undisturbed"))
    assert code == 0
    assert expected
    wrong = []
    for place, name in enumerate(names):
        output = f"{base}/crash-{place:03d}"
        first, _ = forked(lambda: run(output, place))  # noqa: B023 - it runs at once
        second, _ = forked(lambda: run(output, -1))  # noqa: B023
        _, found = forked(lambda: content(output))  # noqa: B023
        if (first, second) != (CRASHED, 0) or found != expected:
            wrong.append(f"{place} {name}: exit codes {first}, {second}, files {sorted(found or {})}")
    print(json.dumps({"points": len(names), "kinds": sorted(set(names)), "wrong": wrong}))


if __name__ == "__main__":
    main()
