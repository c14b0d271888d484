"""Checks before a run on a cluster: each says ok, what to mend, or why it could not check.

Nothing here starts Ray or a cloud's machines; the longest part is reading the model and the key bank through once.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import ray

from raydeploy.capacity import Request, amounts_text, fits, lacking, nearest_group, pack
from raydeploy.cluster_file import GPU_LABEL, ClusterFile
from raydeploy.forecast import PROCESS_BYTES
from raydeploy.object_store import put_if_absent, remove_object
from raydeploy.search_actors import SearchActorsConfig
from raydeploy.upload import LIMIT_BYTES, mistakes, uploaded_files
from raydeploy.versions import package_versions
from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash, read_config, resolve, weight_counts
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.search.planner import BankShape

GPU_SPARE_BYTES = 2_000_000_000
"""Of a GPU, for CUDA itself, a batch and its scores: an allowance, not a measurement."""
RAY_IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)")
SHOWN = 3

Verdict = Literal["ok", "fix", "not checked"]


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: its name.
        verdict: `ok`; `fix`: the run would fail or cost too much; `not checked`, with the reason.
        text: what was seen, and what to do.
    """

    check: str
    verdict: Verdict
    text: str


class SearchPlan(NamedTuple):
    """Search of a run to come.

    Attributes:
        config: how the key bank is cut.
        backend: that scans it, or `auto`.
        threads: of each actor.
    """

    config: SearchActorsConfig
    backend: str
    threads: float


class Subject(NamedTuple):
    """A run to come.

    Attributes:
        working_dir: folder that would be uploaded.
        output: of the run; "": not known.
        model: dual encoder; "": none.
        keys: key bank; "": none.
        requests: actors that it starts at once, but for those of the search.
        cluster: where it would run; None: not known.
        search: of the run; None: it searches nothing.
    """

    working_dir: str
    output: str
    model: str
    keys: str
    requests: tuple[Request, ...]
    cluster: ClusterFile | None
    search: SearchPlan | None = None


def run_checks(subject: Subject) -> list[Finding]:
    """All checks, in the order in which they are worth mending."""
    return [_guarded(name, check, subject) for name, check in CHECKS.items()]


def _guarded(name: str, check: Callable[[Subject], tuple[Verdict, str]], subject: Subject) -> Finding:
    try:
        return Finding(name, *check(subject))
    except InputError as error:
        return Finding(name, "fix", str(error))


def check_cluster(subject: Subject) -> tuple[Verdict, str]:
    """Is the cluster's file in order?"""
    cluster = subject.cluster
    if cluster is None:
        return "not checked", "give --cluster FILE"
    if cluster.problems:
        return "fix", f"{cluster.path}: {'; '.join(cluster.problems)}"
    if cluster.kind != "ray up":
        command = f"kubectl apply --dry-run=server -f {cluster.path}"
        return "ok", f"a {cluster.kind}; its schema is the operator's, which `{command}` asks"
    return "ok", f"{len(cluster.groups)} groups, at most {cluster.most_nodes} nodes beside the head"


def check_requests(subject: Subject) -> tuple[Verdict, str]:
    """Does every actor of the job fit a node, and all of them the cluster?"""
    cluster = subject.cluster
    if not subject.requests or cluster is None:
        return "not checked", "give --cluster FILE, and --job FILE or --actors"
    if not cluster.groups:
        return "not checked", "the cluster's file is to be mended first"
    if any(not group.resources for group in cluster.groups):
        return "not checked", f"{cluster.path} does not say what its hosts have; compare `ray status` with the job"
    requests = subject.requests + search_requests(subject)
    for request in requests:
        if not any(fits(request.needs, group.resources) for group in cluster.groups):
            near = nearest_group(request.needs, cluster.groups)
            short = ", ".join(
                f"{key} ({_amount(key, near.resources)})" for key in lacking(request.needs, near.resources)
            )
            return "fix", (
                f"{request} would never start: no group has that. The nearest is {near}, which is short of {short}. "
                "Ask for less in each actor, or give the group larger machines."
            )
    packing = pack(requests, cluster.groups, cluster.most_nodes)
    if packing.left:
        left = ", ".join(f"{count} {name}" for name, count in packing.left.items())
        limits = ", ".join(f"{group.name} {group.most}" for group in cluster.groups)
        return "fix", (
            f"{left} would never start: at most {cluster.most_nodes} nodes can start ({limits}). Ask for fewer, or "
            "raise max_workers."
        )
    used = ", ".join(f"{count} x {name}" for name, count in packing.nodes.items())
    return "ok", f"{'; '.join(map(str, requests))}: on {used}"


def search_requests(subject: Subject) -> tuple[Request, ...]:
    """The actors that hold parts of the key bank, if there are such, and the memory that each asks for.

    Where the bank cannot be opened their memory is not known; the check of the key bank says why. A cut by the memory
    of the machine that starts the job is not known either, and counts as none.
    """
    if subject.search is None:
        return ()
    config, backend, threads = subject.search
    needs = {"CPU": float(threads), "GPU": float(config.gpus_per_actor)}
    actors = (config.shards or 1) * config.replicas
    try:
        bank = open_key_bank(subject.keys) if subject.keys else None
    except InputError:
        bank = None
    if bank is not None:
        settled = config if config.shards or config.memory_gb else replace(config, shards=1)
        layout = settled.layout(BankShape(*bank.shape, bank.dtype.itemsize), backend, 1)
        actors = layout.shards * layout.replicas
        needs["memory"] = float(layout.bytes_per_actor + PROCESS_BYTES)
    if actors == 1 and not config.gpus_per_actor:
        return ()
    return (Request("search actors", actors, {key: value for key, value in needs.items() if value}),)


def _amount(key: str, resources: Mapping[str, float]) -> str:
    return f"has {amounts_text({key: resources[key]})}" if key in resources else "has none"


def check_gpu_memory(subject: Subject) -> tuple[Verdict, str]:
    """Do model and key bank fit the GPU memory that each actor has?"""
    share = min((request.needs["GPU"] for request in subject.requests if request.needs.get("GPU")), default=0.0)
    if not share:
        return "ok", "no GPU is asked for"
    if not subject.model:
        return "not checked", "give --model"
    weights, rows, width = weight_counts(subject.model).total, 0, 0
    if subject.keys:
        rows, width = open_key_bank(subject.keys).shape
    need = 4 * weights + 2 * rows * width + GPU_SPARE_BYTES
    keys = f"{rows:,} keys of width {width} in bfloat16" if rows else "no key bank"
    said = (
        f"{weights:,} weights in float32, {keys}, and {GPU_SPARE_BYTES / 1e9:g} GB for the rest are {need / 1e9:.1f} GB"
    )
    found = gpu_memories(subject)
    if not found:
        return "not checked", f"{said}; no group has a label {GPU_LABEL}, and nvidia-smi is not here"
    where, memory = min(found.items(), key=lambda item: item[1])
    has = memory * min(1.0, share)
    if need > has:
        return "fix", (
            f"{said}, but an actor has {has / 1e9:.1f} GB of {where}. Give each actor a whole GPU, take larger ones, "
            "or cut the key bank with --search.shards."
        )
    return "ok", f"{said}, of {has / 1e9:.1f} GB of {where}"


def gpu_memories(subject: Subject) -> dict[str, int]:
    """Bytes of a GPU: of the groups that have GPUs, or, without a cluster's file, of this machine's; may be empty."""
    if subject.cluster is not None:
        with_gpu = [group for group in subject.cluster.groups if group.resources.get("GPU")]
        if any(group.gpu_memory is None for group in with_gpu):
            return {}
        return {f"group {group.name}": group.gpu_memory for group in with_gpu if group.gpu_memory}
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout.split()
    return {f"GPU {number} of this machine": int(text) << 20 for number, text in enumerate(said) if text.isdigit()}


def check_upload(subject: Subject) -> tuple[Verdict, str]:
    """Is what --working-dir sends small, and code?"""
    found = uploaded_files(subject.working_dir)
    size = sum(file.size for file in found)
    said = f"{len(found):,} files, {size / 1e6:.1f} MB, of at most {LIMIT_BYTES / 1e6:.1f} MB"
    if "jobs/vokenize_corpus.py" not in {file.path for file in found}:
        return "fix", f"{subject.working_dir!r} is not the root of the project, or leaves it out: no jobs/ in {said}"
    wrong = mistakes(found)
    if wrong:
        listed = "; ".join(f"{m.pattern} ({m.reason}; {m.files:,} files, {m.size / 1e6:.1f} MB)" for m in wrong[:SHOWN])
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return "fix", f"{said}. In it by mistake: {listed}{more}. Add them to .rayignore, or move them."
    if size > LIMIT_BYTES:
        largest = ", ".join(f"{f.path} ({f.size / 1e6:.1f} MB)" for f in sorted(found, key=lambda f: -f.size)[:SHOWN])
        return "fix", f"{said}. The largest are {largest}. Add what a job does not need to .rayignore."
    return "ok", said


def check_storage(subject: Subject) -> tuple[Verdict, str]:
    """May results be written and removed there?"""
    output = subject.output
    if not output:
        return "not checked", "give --output"
    if not files.is_uri(output) and not os.path.isabs(output):
        return "fix", (
            f"{output!r} is relative, but a submitted job runs in a temporary copy of the project. Give an absolute "
            "path on storage that all nodes share, or a URI such as s3://bucket/run."
        )
    write_and_remove(output)
    note = "" if files.is_uri(output) else "; every node must have this very path on storage that all share"
    return "ok", f"a probe was written to {output!r} and removed again, from here{note}"


def write_and_remove(folder: str) -> None:
    """Create a probe below a folder as jobs create results, read it, remove it, and leave nothing, no folder either.

    Raises:
        InputError: one of these is not allowed, or the place is not there.
    """
    probe, token = files.join(folder, f".probe-{secrets.token_hex(6)}"), secrets.token_bytes(16)
    above = [] if files.is_uri(folder) else [Path(folder), *Path(folder).parents]
    made = [place for place in above if not place.exists()]
    was_new, was_there = put_if_absent(probe, token), not put_if_absent(probe, token)
    is_same = files.read_bytes(probe) == token
    _remove(probe)
    for place in made:
        place.rmdir()
    if not (was_new and was_there and is_same):
        raise InputError(
            f"output {folder!r} does not keep what is created there: a second writer was "
            f"{'refused' if was_there else 'let in'}, and what was read is "
            f"{'the same' if is_same else 'something else'}. Take another store: a shard must be written once."
        )


def _remove(path: str) -> None:
    if files.is_uri(path):
        remove_object(path)
    else:
        os.unlink(path)


def check_model(subject: Subject) -> tuple[Verdict, str]:
    """Is the model whole?"""
    if not subject.model:
        return "not checked", "give --model"
    weights = weight_counts(subject.model).total
    copied = "" if files.is_uri(subject.model) else "; workers get a copy of it below the output"
    return "ok", f"{subject.model}: {weights:,} weights, hash {model_hash(subject.model)[:12]}{copied}"


def check_keys(subject: Subject) -> tuple[Verdict, str]:
    """Is the key bank whole, and made for this model?"""
    if not subject.keys:
        return "not checked", "give --keys"
    bank = open_key_bank(subject.keys)
    count, width = bank.shape
    said = f"{subject.keys}: {count:,} keys of width {width}, hash {bank.hash[:12]}"
    if not subject.model:
        return "ok", f"{said}; not compared with a model: give --model"
    dim = read_config(resolve(subject.model), DualEncoderConfig).dim
    if dim != width:
        return "fix", f"{said}, but the model's vectors have width {dim}. Make the bank with this model: jobs/embed.py."
    record = files.join(subject.keys, "identity.json")
    made_by = files.read_json(record).get("model") if files.exists(record) else None
    if made_by and made_by != model_hash(subject.model):
        return "fix", f"{said}, was made with another model, {made_by[:12]}. Make it with this one: jobs/embed.py."
    return "ok", f"{said}, made {'by' if made_by else 'as wide as'} this model{_reach(subject.keys)}"


def _reach(path: str) -> str:
    return "" if files.is_uri(path) else "; seen from here, and every node must see it at the same path"


def check_versions(subject: Subject) -> tuple[Verdict, str]:
    """Do this machine, constraints.txt and the image agree?"""
    installed = package_versions()
    constraints = files.join(subject.working_dir, "constraints.txt")
    pins = read_pins(files.read_text(constraints)) if files.exists(constraints) else {}
    wrong = unpinned(installed, pins) + (other_on_cluster(installed, subject.cluster) if subject.cluster else [])
    if wrong:
        return "fix", f"{'; '.join(wrong)}. Install with -c constraints.txt, and name the image of that version."
    if not pins:
        return "not checked", f"no constraints.txt in {subject.working_dir!r}"
    compared = [name for name in installed if name in pins]
    return "ok", f"{len(compared)} packages as pinned, Ray {ray.__version__}, Python {installed['python']}"


def unpinned(installed: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """Packages whose version is another than the one pinned; what follows a plus (as in 2.15.0+cpu) is not compared."""
    return [
        f"{name} {version} is installed, constraints.txt says {pins[name]}"
        for name, version in installed.items()
        if name in pins and pins[name] != version.partition("+")[0]
    ]


def other_on_cluster(installed: Mapping[str, str], cluster: ClusterFile) -> list[str]:
    """Versions of Ray and Python that a cluster's file names and this machine has not."""
    wrong = []
    for image in cluster.images:
        match = RAY_IMAGE.search(image)
        if match and match[1] != ray.__version__:
            wrong.append(f"the image {image} has Ray {match[1]}, this machine {ray.__version__}")
        if match and (int(match[2]), int(match[3])) != sys.version_info[:2]:
            wrong.append(f"the image {image} has Python {match[2]}.{match[3]}, this machine {installed['python']}")
    if cluster.ray_version not in ("", ray.__version__):
        wrong.append(f"{cluster.path} says rayVersion {cluster.ray_version}, this machine has {ray.__version__}")
    return wrong


def read_pins(text: str) -> dict[str, str]:
    """Versions by package from lines of the form name==version."""
    pairs = (line.split("==", 1) for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.split(";")[0].strip() for name, version in pairs}


CHECKS: Mapping[str, Callable[[Subject], tuple[Verdict, str]]] = {
    "cluster file": check_cluster,
    "resources": check_requests,
    "GPU memory": check_gpu_memory,
    "upload": check_upload,
    "storage": check_storage,
    "model": check_model,
    "key bank": check_keys,
    "versions": check_versions,
}
"""By the name that a row of the report has."""


def questions() -> Sequence[tuple[str, str]]:
    """Every check and the question it asks."""
    return [(name, (check.__doc__ or "").strip()) for name, check in CHECKS.items()]
