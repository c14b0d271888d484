"""The runs of an ablation: jobs as processes, with a log for each step and a record that lets the next time go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from xmatch.data import files
from xmatch.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
STATE = "run.json"


class Step(NamedTuple):
    """One command of a run; placeholders are not yet filled in."""

    name: str
    words: list[str]


@dataclass(frozen=True)
class Run:
    """An arm with a seed, or a prepared step."""

    label: str
    folder: Path
    steps: list[Step]
    values: dict[str, str]

    def state(self) -> dict[str, Any]:
        """What was done so far: identity, done, failed."""
        path = self.folder / STATE
        if path.exists():
            return files.read_json(str(path))
        return {"identity": self.identity(), "done": [], "failed": None}

    def identity(self) -> list[list[Any]]:
        """What the run is, wherever its data and output lie: its arguments, and the content of its config files."""
        found: list[list[Any]] = []
        for step in self.steps:
            places = [fill(word, self.values) for before, word in pairwise(step.words) if before == "--config"]
            places = [str(ROOT / place) for place in places]
            hashes = [files.sha256(place) if files.exists(place) else None for place in places]
            found.append([step.name, step.words, hashes])
        return found

    def require_same(self) -> None:
        if self.state()["identity"] != self.identity():
            raise InputError(f"{self.folder} was run with other arguments. Remove that folder, or give another output.")

    def commands(self) -> list[list[str]]:
        return [[fill(word, self.values) for word in step.words] for step in self.steps]

    def execute(self) -> bool:
        """Run the steps that are not done; false when one fails. The rest is then left for the next time."""
        state = self.state()
        for step, words in zip(self.steps, self.commands()):
            if step.name in state["done"]:
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(str(self.folder / STATE), state | {"failed": None})
            log, started = self.folder / f"{step.name}.log", time.monotonic()
            code = run_logged(words, log)
            if code:
                state["failed"] = f"{step.name} ended with {code}: {last_line(log)} (see {log})"
                files.write_json(str(self.folder / STATE), state)
                return False
            state["done"].append(step.name)
            state["failed"] = None
            state[f"{step.name}_seconds"] = time.monotonic() - started
            files.write_json(str(self.folder / STATE), state)
        return True


def fill(text: str, values: dict[str, str]) -> str:
    """`text` with its ${NAME} filled in."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise InputError(f"${{{found[1]}}} has no value; give --set {found[1]}=…; known are {', '.join(values)}.")
        return values[found[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def run_logged(words: list[str], log: Path) -> int:
    """Run one job as a user does, its output added to `log`; its exit code."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with open(log, "a", encoding="utf-8") as sink:
        print(f"$ {' '.join(words)}", file=sink, flush=True)
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=sink, stderr=subprocess.STDOUT
        )
    return done.returncode


def last_line(log: Path) -> str:
    """The error of the last command in a log, or where it says none, its last line."""
    last = log.read_text(errors="replace").rsplit("\n$ ", 1)[-1]
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:300]
