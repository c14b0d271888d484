"""Check a run before it is submitted to a cluster: files, rights, versions, memory, and whether its actors fit.

    python jobs/vokenize_corpus.py --tokens … --keys … --model … --output … --ray.actors 4 --print-config > run.yaml
    python jobs/preflight.py --job run.yaml --cluster cluster/aws-gpu.yaml

One row a check: ok, fix (with what to do), or not checked (with the reason). The exit code is 0, or 2 where something
is to be mended. No machine is started and nothing is uploaded; a probe is written to the output and removed again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raydeploy.capacity import Request
from raydeploy.cluster_file import read_cluster_file
from raydeploy.config import load_config, to_yaml
from raydeploy.preflight import Finding, SearchPlan, Subject, questions, run_checks
from raydeploy.search_actors import SearchActorsConfig
from xmatch.data import files
from xmatch.errors import InputError

STYLES = {"ok": "green", "fix": "bold red", "not checked": "yellow"}


@dataclass(frozen=True, kw_only=True)
class PreflightConfig:
    """What is to be checked; what is given here goes before what the job's file says."""

    job: str = ""
    """Settings of the job, as `--print-config` of the job writes them: output, model, keys, and how many actors."""
    cluster: str = ""
    """Cluster's file: of `ray up`, or a RayCluster or RayJob of KubeRay."""
    working_dir: str = "."
    """What `ray job submit --working-dir` would name."""
    output: str | None = None
    """Folder or URI of the results."""
    model: str | None = None
    """Dual encoder: a folder, a URI, or a hub name."""
    keys: str | None = None
    """Key bank."""
    actors: int | None = None
    """Workers of the job, as ray.actors or trainer.workers."""
    cpus_per_actor: float | None = None
    """CPU cores of each of them."""
    gpus_per_actor: float | None = None
    """GPUs, or a share of one, of each of them."""
    memory_gb_per_actor: float | None = None
    """Memory that each of them asks for, in GB."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        given = (self.cpus_per_actor, self.gpus_per_actor, self.memory_gb_per_actor)
        if (self.actors is not None and self.actors < 1) or any(value is not None and value < 0 for value in given):
            raise InputError("actors must be at least 1, and what each of them gets must not be below 0.")


def subject_of(config: PreflightConfig) -> Subject:
    """The run that the settings describe.

    Raises:
        InputError: the job's or the cluster's file is not there, or is none.
    """
    job = read_job(config.job) if config.job else {}
    return Subject(
        working_dir=config.working_dir,
        output=_first(config.output, job.get("output")),
        model=_first(config.model, job.get("model")),
        keys=_first(config.keys, job.get("keys")),
        requests=tuple(requests_of(job, config)),
        cluster=read_cluster_file(config.cluster) if config.cluster else None,
        search=search_of(job),
    )


def read_job(path: str) -> dict[str, Any]:
    """Settings of a job as plain values.

    Raises:
        InputError: the file is not there, or no YAML of settings.
    """
    try:
        found = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path!r} is no YAML: {' '.join(str(error).split())}. Mend it there.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path!r} holds no settings of a job; write them with --print-config of the job.")
    return found


def requests_of(job: Mapping[str, Any], config: PreflightConfig) -> list[Request]:
    """Workers that run at the same time.

    Args:
        job: settings, with those of `ray` and `trainer` where the job has them.
        config: what goes before them.
    """
    if not job and config.actors is None:
        return []
    if "trainer" in job:
        trainer = _section(job, "trainer")
        name, count = "training workers", trainer.get("min_workers") or trainer.get("workers", 1)
        cpus, gpus = trainer.get("cpus_per_worker", 1), 1 if trainer.get("use_gpu") else 0
    else:
        ray = _section(job, "ray")
        name, count = "workers", ray.get("actors", 1)
        cpus, gpus = ray.get("cpus_per_actor", 1), ray.get("gpus_per_actor", 0)
    memory = (config.memory_gb_per_actor or 0) * 1e9
    needs = {"CPU": _first(config.cpus_per_actor, cpus), "GPU": _first(config.gpus_per_actor, gpus), "memory": memory}
    return [Request(name, _first(config.actors, count), {k: float(v) for k, v in needs.items() if v})]


def search_of(job: Mapping[str, Any]) -> SearchPlan | None:
    """How the job searches its key bank; None where it has no search.

    Raises:
        InputError: the settings of the search cannot be meant.
    """
    search, vokenize = _section(job, "search"), _section(job, "vokenize")
    if not search:
        return None
    try:
        config = SearchActorsConfig(**search)
    except TypeError as error:
        raise InputError(f"the job's settings of search are of another version ({error}). Print them again.") from error
    return SearchPlan(config, str(vokenize.get("backend", "auto")), float(vokenize.get("threads", 1)))


def _section(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = job.get(name)
    return found if isinstance(found, dict) else {}


def _first(*values: Any) -> Any:
    """The first that is given; "" where none is."""
    return next((value for value in values if value is not None), "")


def show(console: Console, findings: Sequence[Finding]) -> None:
    """A row for each finding."""
    table = Table(title="preflight", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.check, Text(finding.verdict, STYLES[finding.verdict]), Text(finding.text))
    console.print(table, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; the exit code."""
    console, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        loaded = load_config(PreflightConfig, argv, name="preflight", description=(__doc__ or "").strip())
        if loaded.print_only:
            sys.stdout.write(to_yaml(loaded.config))
            return 0
        if loaded.plan_only:
            console.print("\n".join(f"{name}: {question}" for name, question in questions()), highlight=False)
            return 0
        findings = run_checks(subject_of(loaded.config))
    except InputError as error:
        errors.print(f"error: {error}")
        return 2
    show(console, findings)
    to_mend = [finding.check for finding in findings if finding.verdict == "fix"]
    if to_mend:
        errors.print(f"to be mended before the run: {', '.join(to_mend)}")
    return 2 if to_mend else 0


if __name__ == "__main__":
    sys.exit(main())
