"""A run that ends, as if by power cut, before or after any single step of the commit protocol; then it is run again.

    python crashes.py FOLDER_OR_URI local|store [--table]

Every crash is a process of its own, forked from this one. Prints one JSON object: the points in order, each with what
the second run found and did, and the names of those after which it did not give what an undisturbed one gives. With
--table it prints the table of docs/reliability.md instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    """Counts the protocol's steps and ends the process at one of them; -1: at none.

    A step has the name "WHEN VERB FILE", the file as it is called below the run's folder.
    """

    def __init__(self, crash_at: int, output: str) -> None:
        self.crash_at, self.output = crash_at, output
        self.names: list[str] = []
        self.written = ""

    def point(self, name: str) -> None:
        if len(self.names) == self.crash_at:
            os._exit(CRASHED)
        self.names.append(name)

    def around(
        self, name: str, function: Callable[..., Any], path_of: Callable[..., str] = lambda *given: given[0]
    ) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            step = f"{name} {self.called(path_of(*given))}"
            self.point(f"before {step}")
            result = function(*given, **named)
            self.point(f"after {step}")
            return result

        return watched

    def called(self, path: str) -> str:
        """A file's name below the run's folder, the same in every run."""
        relative = str(path).removeprefix(self.output).strip("/") or "the run's folder"
        return re.sub(re.escape(files.TEMPORARY_MARK) + ".*", " (temporary)", relative)

    def in_halves(self, write: Callable[..., None]) -> Callable[..., None]:
        """A table or a JSON file of which only the first half is written when the crash falls."""

        def written(content: Any, sink: Any, **named: Any) -> None:
            whole = pa.BufferOutputStream()
            write(content, whole, **named)
            data = whole.getvalue().to_pybytes()
            sink.write(data[: len(data) // 2])
            self.point(f"half of {self.called(self.written)}")
            sink.write(data[len(data) // 2 :])

        return written


def watch_local(steps: Steps) -> None:
    """Every call by which a local file or name comes into being, is filled, or goes."""
    targets = {
        "makedirs": lambda path, *more: path,
        "replace": lambda source, target: target,
        "link": lambda source, target: target,
        "unlink": lambda path, *more: path,
        "fsync": lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"),
    }
    for name, path_of in targets.items():
        setattr(os, name, steps.around(name, getattr(os, name), path_of))
    files.pq.write_table = steps.in_halves(files.pq.write_table)
    fill = steps.in_halves(lambda data, sink: sink.write(data))
    open_atomic = files.open_atomic

    @contextmanager
    def noted(path: str) -> Iterator[Any]:
        steps.written = path
        with open_atomic(path) as sink:
            yield sink

    def write_bytes(path: str, data: bytes) -> None:
        with noted(path) as sink:
            fill(data, sink)

    files.open_atomic, files.write_bytes = noted, write_bytes


def watch_store(steps: Steps) -> None:
    """Every request by which an object comes into being."""
    files._upload = steps.around("upload", files._upload, lambda *given: given[3])
    object_store._put_object = steps.around("create", object_store._put_object)
    ledger_module.abort_uploads = steps.around("abort uploads to", ledger_module.abort_uploads)


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
    for info in filesystem.get_file_info(pafs.FileSelector(inside, allow_not_found=True, recursive=True)):
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


def found_by_a_rerun(there: Sequence[str]) -> str:
    """What a crash left, in words.

    Args:
        there: paths below the run's folder.
    """
    names = [name.strip("/") for name in there]
    whole = [name for name in names if files.TEMPORARY_MARK not in name]
    done = sum(name.startswith("completions/") for name in whole)
    unmarked = sum(name.startswith("shards/") for name in whole) - done
    parts = [
        "identity" if "identity.json" in whole else "",
        f"{done} done" if done else "",
        f"{unmarked} without marker" if unmarked else "",
        "manifest" if "manifest.json" in whole else "",
        "temporary" if len(names) > len(whole) else "",
    ]
    return ", ".join(filter(None, parts)) or "nothing"


def done_by_a_rerun(steps: Sequence[str]) -> str:
    """What a run did, in words."""
    made = {step for step in steps if re.match(r"after (replace|upload) shards/", step)}
    return {0: "no shard", 1: "1 shard"}.get(len(made), f"{len(made)} shards")


class Point(NamedTuple):
    """A place where the run was ended: its name, what the next run found and did, and whether all was well then."""

    name: str
    found: str
    done: str
    survived: bool


def table(points: Sequence[Point]) -> list[str]:
    """A line of Markdown for each step, with the crash before it and the one after it, or in the middle of it."""
    rows: dict[str, dict[str, Point]] = {}
    order: list[str] = []
    counts: dict[str, int] = {}
    for point in points:
        when, _, step = point.name.partition(" ")
        if when != "after":
            counts[step] = counts.get(step, 0) + 1
            order.append(f"{step}#{counts[step]}")
        key = f"{step}#{counts[step]}"
        rows.setdefault(key, {})[when] = point
    lines = ["| step | ended before it: found, done | ended after it: found, done | survived |", "|---|---|---|---|"]
    for key in order:
        cells = [rows[key].get(when) for when in ("before", "after")]
        half = rows[key].get("half")
        if half:
            cells = [half, None]
        told = [f"{cell.found}; {cell.done}" if cell else "" for cell in cells]
        step = f"half of {key.partition(' ')[2]}" if half else key
        well = all(point.survived for point in rows[key].values())
        lines.append(f"| {step.partition('#')[0]} | {told[0]} | {told[1]} | {'yes' if well else '**no**'} |")
    return lines


def main() -> None:
    base, watch = sys.argv[1], {"local": watch_local, "store": watch_store}[sys.argv[2]]

    def run(output: str, crash_at: int) -> list[str]:
        steps = Steps(crash_at, output)
        watch(steps)
        work(output)
        return steps.names

    def rerun(output: str) -> tuple[list[str], list[str], dict[str, str]]:
        """What is there, the steps of a run upon it, and what is there then."""
        return sorted(content(output)), run(output, -1), content(output)

    code, (_, names, expected) = forked(lambda: rerun(f"{base}/undisturbed"))
    assert code == 0
    assert expected
    points = []
    for place, name in enumerate(names):
        output = f"{base}/crash-{place:03d}"
        first, _ = forked(lambda: run(output, place))  # noqa: B023 - it runs at once
        second, said = forked(lambda: rerun(output))  # noqa: B023
        left, steps, found = said or ([], [], {})
        survived = (first, second) == (CRASHED, 0) and found == expected
        points.append(Point(name, found_by_a_rerun(left), done_by_a_rerun(steps), survived))
    if "--table" in sys.argv:
        print("\n".join(table(points)))
    else:
        print(json.dumps(points))


if __name__ == "__main__":
    main()
