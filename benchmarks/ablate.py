"""Arms x seeds of the real jobs, one after the other, as one table with deviations and paired tests.

    python benchmarks/ablate.py --table X.yaml --output runs/x --set DATA=/data [--only ARM ...] [--plan]

A table is YAML:

    name: pooling on flickr8k
    seeds: [1, 2, 3]
    baseline: mean                                # the arm that the others are compared to
    metrics: [rsum, image_to_text.recall_at_1]    # below `figures` of the result; dots go into objects
    arguments:                                    # of every run, by step
      train: {config: jobs/configs/x.yaml, train.captions: "${DATA}/c.json", trainer.epochs: 12}
      evaluate: {data.captions: "${DATA}/c.json", data.images: "${DATA}/images", data.split: test}
    arms:                                         # more arguments of the first step; below a step's name, of that step
      mean: {model.pooling: mean}
      max: {config: jobs/configs/max.yaml, evaluate: {batch_size: 64}}
    prepare:                                      # optional: steps that run once, before all arms
      - {name: features, job: jobs/embed.py, arguments: {output: "${RUN}"}}
    steps: …                                      # optional: of each run, as in `prepare`; by default train, evaluate
    result: evaluate/retrieval.json               # optional: file below the run's folder that holds the figures

Strings may hold ${NAME}: RUN (folder of this run, of a prepared step its own), OUTPUT, SEED, ARM, PREPARED (folder of
all prepared steps), or a value of --set. Config files come first, the table's before the arm's; then single arguments
in the same order; then those of `steps`. So an argument of the table overrides a file of an arm.

Runs lie in <output>/<arm>/seed-<seed>/ with a log for each step. The same command goes on after a stop or a failure:
finished runs and steps are skipped. table.md and table.json are written anew after every run. The difference to the
baseline is taken over the seeds that both have: mean, t and two-sided p of Student's paired test, not corrected for the
number of arms. Exit codes: 0 all runs finished; 1 some failed; 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ablation_runs import Run, Step
from ablation_table import Figures, markdown, summary

from xmatch.data import files
from xmatch.errors import InputError

STEPS = [
    {
        "name": "train",
        "job": "jobs/train_xmatch.py",
        "arguments": {"output": "${RUN}/train", "trainer.seed": "${SEED}"},
    },
    {
        "name": "evaluate",
        "job": "jobs/eval_retrieval.py",
        "arguments": {"model": "${RUN}/train/model", "output": "${RUN}/evaluate"},
    },
]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A comparison as its YAML says it."""

    name: str
    seeds: list[int]
    arms: dict[str, dict[str, Any]]
    baseline: str
    metrics: list[str]
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepare: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=lambda: STEPS)
    result: str = "evaluate/retrieval.json"

    def __post_init__(self) -> None:
        names = [step["name"] for step in self.steps]
        if self.baseline not in self.arms:
            raise InputError(f"baseline is {self.baseline!r}; the arms are {', '.join(self.arms)}.")
        if not self.metrics or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("give at least one metric, and at least one seed, each once.")
        if unknown := set(self.arguments) - set(names):
            raise InputError(f"arguments are given for the step {min(unknown)!r}; the steps are {', '.join(names)}.")
        for name in [*self.arms, *names, *(step["name"] for step in self.prepare)]:
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name) or name == "prepared":
                raise InputError(f"{name!r} names a folder: use letters, digits, and any of _ . + - (not 'prepared').")


def read_table(path: str) -> Table:
    """The comparison in a YAML file."""
    try:
        content = yaml.safe_load(files.read_text(path))
        return Table(**content)
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(f"{path!r} is no table: {error}. See python benchmarks/ablate.py --help.") from error


def words_of(job: str, *groups: dict[str, Any]) -> list[str]:
    """A job's command: config files first, then single arguments, later groups after earlier ones."""
    configs: list[str] = []
    single: dict[str, Any] = {}
    for group in groups:
        found = group.get("config", [])
        configs += found if isinstance(found, list) else [found]
        single |= {name: value for name, value in group.items() if name != "config"}
    words = [job]
    for name, value in [*(("config", config) for config in configs), *single.items()]:
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def run_of(table: Table, arm: str, seed: int, output: Path, values: dict[str, str]) -> Run:
    """An arm with a seed."""
    names = [step["name"] for step in table.steps]
    more = {name: value for name, value in table.arms[arm].items() if name in names and isinstance(value, dict)}
    more[names[0]] = {k: v for k, v in table.arms[arm].items() if k not in more} | more.get(names[0], {})
    steps = [
        Step(
            s["name"],
            words_of(s["job"], table.arguments.get(s["name"], {}), more.get(s["name"], {}), s.get("arguments", {})),
        )
        for s in table.steps
    ]
    folder = output / arm / f"seed-{seed}"
    return Run(f"{arm}, seed {seed}", folder, steps, values | {"ARM": arm, "SEED": str(seed), "RUN": str(folder)})


def prepared(table: Table, output: Path, values: dict[str, str]) -> list[Run]:
    """The steps that run once."""
    runs = []
    for step in table.prepare:
        folder = output / "prepared" / step["name"]
        words = words_of(step["job"], step.get("arguments", {}))
        runs.append(Run(f"prepare {step['name']}", folder, [Step(step["name"], words)], values | {"RUN": str(folder)}))
    return runs


def figures_of(run: Run, table: Table) -> tuple[dict[str, float] | None, str | None]:
    """The run's metrics, or why there are none; neither for a run that has not ended."""
    state, path = run.state(), run.folder / table.result
    if state["failed"]:
        return None, state["failed"]
    if len(state["done"]) < len(run.steps):
        return None, None
    if not path.exists():
        return None, f"it ended without {path}; remove {run.folder} to run it again"
    found = {}
    for metric in table.metrics:
        value = files.read_json(str(path)).get("figures", {})
        for part in metric.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None, f"{path} has {value!r} for {metric!r}, expected a finite number"
        found[metric] = float(value)
    return found, None


def write_tables(table: Table, output: Path, values: dict[str, str]) -> dict[str, Any]:
    """Write table.json and table.md from what lies in the runs' folders; the former's content."""
    figures: Figures = {arm: {} for arm in table.arms}
    failed, missing = [], []
    for arm in table.arms:
        for seed in table.seeds:
            found, why = figures_of(run_of(table, arm, seed, output, values), table)
            if found is not None:
                figures[arm][seed] = found
            else:
                (failed if why else missing).append({"arm": arm, "seed": seed, "why": why or "not run to its end yet"})
    content = summary(table.name, table.baseline, table.metrics, figures)
    content |= {"failed": failed, "missing": missing}
    files.write_json(str(output / "table.json"), content)
    files.write_bytes(str(output / "table.md"), markdown(content).encode())
    return content


def settings(arguments: argparse.Namespace, table: Table, output: Path) -> dict[str, str]:
    """The values of placeholders that all runs share."""
    pairs = [pair.partition("=") for pair in arguments.set]
    if bad := [name for name, equals, _ in pairs if not equals or not re.fullmatch(r"\w+", name)]:
        raise InputError(f"--set {bad[0]}: expected NAME=value.")
    if unknown := set(arguments.only) - set(table.arms):
        raise InputError(f"--only {min(unknown)}: the arms are {', '.join(table.arms)}.")
    return {name: value for name, _, value in pairs} | {"OUTPUT": str(output), "PREPARED": str(output / "prepared")}


def work(arguments: argparse.Namespace) -> int:
    """Run what is not done; the exit code."""
    table, output = read_table(arguments.table), Path(arguments.output).resolve()
    values = settings(arguments, table, output)
    first = prepared(table, output, values)
    pairs = [(arm, seed) for seed in table.seeds for arm in table.arms if not arguments.only or arm in arguments.only]
    runs = [run_of(table, arm, seed, output, values) for arm, seed in pairs]
    for run in [*first, *runs]:
        run.require_same()
        commands = run.commands()
        if arguments.plan:
            state = "done" if len(run.state()["done"]) == len(run.steps) else "to do"
            print(f"{run.label}: {state}", *(f"    python {' '.join(words)}" for words in commands), sep="\n")
    if arguments.plan:
        return 0
    for run in first:
        print(f"{run.label} ...", flush=True)
        if not run.execute():
            raise InputError(f"{run.label}: {run.state()['failed']}. No arm was run.")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {pool.submit(run.execute): run for run in runs}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                future.result()
                done, why = figures_of(waiting[future], table)
                print(f"[{number} of {len(runs)}] {waiting[future].label}: {done or f'FAILED, {why}'}", flush=True)
                write_tables(table, output, values)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = write_tables(table, output, values)
    print(markdown(found))
    return 1 if found["failed"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="the YAML file")
    parser.add_argument("--output", required=True, help="folder of all runs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=value", help="value of a placeholder")
    parser.add_argument("--only", action="append", default=[], metavar="ARM", help="run this arm only; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--plan", action="store_true", help="say what would be run, and stop")
    try:
        return work(parser.parse_args(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
