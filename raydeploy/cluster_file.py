"""A cluster's file, of `ray up` or of KubeRay: whether it is in order, and the groups of nodes that it can have.

Of `ray up` files, Ray's own schema and preparation are asked first; below are checks of what those let pass. A KubeRay
manifest is checked here for the same things only: the rest is for the operator's own schema.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jsonschema
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raydeploy.capacity import Group
from xmatch.data import files
from xmatch.errors import InputError

GPU_LABEL = "gpu-memory-gib"
"""Label of a group with GPUs: the GiB of each. Ray and the clouds do not say it beforehand."""
MACHINE = {"aws": ("InstanceType", "IamInstanceProfile"), "gcp": ("machineType", "serviceAccounts")}
"""What a node of a cloud must say: its machine, and the account by which it reaches storage without keys."""
PLACE = {"aws": ("region",), "gcp": ("region", "project_id")}
SECRET = re.compile(r"aws_secret|aws_access|akia[0-9a-z]{16}|password|-----begin|ray_auth_token=", re.IGNORECASE)
FLOATING = {"latest", "nightly", "master", "main"}
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class ClusterFile(NamedTuple):
    """What a cluster's file says.

    Attributes:
        path: of it.
        kind: `ray up`, `RayCluster` or `RayJob`.
        groups: of worker nodes.
        most_nodes: beside the head, of all groups together.
        images: of containers.
        ray_version: that the file names, beside that in an image's name; "" where it does not.
        problems: what is to be mended.
    """

    path: str
    kind: str
    groups: tuple[Group, ...]
    most_nodes: int
    images: tuple[str, ...]
    ray_version: str
    problems: tuple[str, ...]


def read_cluster_file(path: str) -> ClusterFile:
    """Read and check a cluster's file.

    Raises:
        InputError: it is not there, no YAML, or of neither kind.
    """
    text = files.read_text(path)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path!r} is no YAML: {' '.join(str(error).split())}. Mend it there.") from error
    config = config if isinstance(config, dict) else {}
    if config.get("kind") in ("RayCluster", "RayJob"):
        found = _kuberay(path, config)
    elif "provider" in config:
        found = _ray_up(path, config)
    else:
        raise InputError(
            f"{path!r} is no cluster's file: expected a `provider` (ray up), or `kind: RayCluster` or `kind: RayJob` "
            f"(KubeRay), got {', '.join(map(str, config)) or 'nothing'}."
        )
    secret = ["it holds something secret; nodes should use an account of theirs"] if SECRET.search(text) else []
    floating = [f"image {image!r} is not pinned to a version" for image in found.images if not is_pinned(image)]
    return found._replace(problems=(*found.problems, *floating, *secret))


def is_pinned(image: str) -> bool:
    """Whether an image's name has a digest, or a tag that says a version."""
    if "@sha256:" in image:
        return True
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    return bool(re.search(r"\d", tag)) and not FLOATING & set(re.split(r"[-.]", tag))


def _ray_up(path: str, config: dict[str, Any]) -> ClusterFile:
    provider = config["provider"] if isinstance(config["provider"], dict) else {}
    problems = list(_hosts_missing(config, provider)) if provider.get("type") == "local" else []
    prepared = config
    if not problems:  # of hosts alone, Ray would end the process over them
        try:
            prepared = prepare_config(copy.deepcopy(config))
            validate_config(prepared)
        except jsonschema.ValidationError as error:
            problems.append(f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message.splitlines()[0]}")
        except (ValueError, RuntimeError, LookupError, AssertionError, TypeError, AttributeError) as error:
            problems.append(f"Ray refuses it: {type(error).__name__}: {error}")
    if not problems:
        problems += _left_out(prepared, provider)
    docker = config.get("docker") if isinstance(config.get("docker"), dict) else {}
    named = [docker[key] for key in ("image", "head_image", "worker_image") if docker and docker.get(key)]
    kinds = prepared.get("available_node_types")
    groups = [] if problems or not isinstance(kinds, dict) else _groups(prepared, kinds)
    most = prepared.get("max_workers")
    return ClusterFile(
        path, "ray up", tuple(groups), most if isinstance(most, int) else 0, tuple(named), "", tuple(problems)
    )


def _hosts_missing(config: Mapping[str, Any], provider: Mapping[str, Any]) -> Iterator[str]:
    if not provider.get("coordinator_address") and not (provider.get("head_ip") and provider.get("worker_ips")):
        yield "provider: of hosts of your own, head_ip and worker_ips must be given"
    for key in ("available_node_types", "head_node", "worker_nodes"):
        if config.get(key):
            yield f"{key} has no meaning for hosts of your own; remove it"


def _left_out(config: Mapping[str, Any], provider: Mapping[str, Any]) -> Iterator[str]:
    """What Ray accepts, and a cloud does not, or should not."""
    cloud = provider.get("type")
    for key in PLACE.get(str(cloud), ()):
        if not provider.get(key):
            yield f"provider.{key} is missing"
    for name, kind in config["available_node_types"].items():
        for key in MACHINE.get(str(cloud), ()):
            if not kind["node_config"].get(key):
                yield f"node type {name!r} has no {key}"
    head = config["available_node_types"][config["head_node_type"]]
    if cloud in MACHINE and head["resources"].get("CPU") != 0:
        yield "the head would take work: give its node type resources {CPU: 0}"
    commands = " ".join(config.get("head_start_ray_commands", []))
    if "--dashboard-host=127.0.0.1" not in commands:
        yield "the dashboard would listen to the network: start the head with --dashboard-host=127.0.0.1"


def _groups(config: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[Group]:
    hosts = config["provider"]["type"] == "local"
    return [
        Group(name, dict(kind["resources"]), kind["max_workers"], _gpu_memory(kind.get("labels") or {}))
        for name, kind in kinds.items()
        if hosts or name != config["head_node_type"]
    ]


def _gpu_memory(labels: Mapping[str, str]) -> int | None:
    said = str(labels.get(GPU_LABEL, ""))
    return int(said) * 2**30 if said.isdigit() else None


def _kuberay(path: str, config: dict[str, Any]) -> ClusterFile:
    spec = config.get("spec") or {}
    spec = (spec.get("rayClusterSpec") or {}) if config["kind"] == "RayJob" else spec
    head, workers = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    problems = [] if spec.get("rayVersion") else ["rayVersion is missing"]
    if str((head.get("rayStartParams") or {}).get("num-cpus")) != "0":
        problems.append('the head would take work: give it rayStartParams {num-cpus: "0"}')
    if (spec.get("authOptions") or {}).get("mode") != "token":
        problems.append("whoever reaches the pods could run code: give authOptions {mode: token}")
    groups = []
    for number, worker in enumerate(workers):
        try:
            groups.append(_pod_group(worker))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"workerGroupSpecs[{number}] cannot be read: {type(error).__name__}: {error}")
    images = tuple(dict.fromkeys(_images([head, *workers])))
    most = sum(group.most for group in groups)
    version = str(spec.get("rayVersion") or "")
    return ClusterFile(path, config["kind"], tuple(groups), most, images, version, tuple(problems))


def _images(groups: Sequence[Any]) -> Iterator[str]:
    for group in groups:
        pod = ((group or {}).get("template") or {}).get("spec") or {}
        yield from (container["image"] for container in pod.get("containers") or [] if container.get("image"))


def _pod_group(worker: Mapping[str, Any]) -> Group:
    """Resources as the operator reads them: of the first container, its start parameters before its limits."""
    wanted = worker["template"]["spec"]["containers"][0]["resources"]
    limits = {**(wanted.get("requests") or {}), **(wanted.get("limits") or {})}
    start = worker.get("rayStartParams") or {}
    gpus = start.get("num-gpus", sum(quantity(value) for key, value in limits.items() if key.endswith("/gpu")))
    found = {"CPU": float(start.get("num-cpus", math.ceil(quantity(limits.get("cpu", 0))))), "GPU": float(gpus)}
    found["memory"] = float(start.get("memory", quantity(limits.get("memory", 0))))
    resources = {key: value for key, value in found.items() if value}
    most = int(worker["maxReplicas"]) * int(worker.get("numOfHosts", 1))
    return Group(str(worker["groupName"]), resources, most, _gpu_memory(worker.get("labels") or {}))


def quantity(text: Any) -> float:
    """A quantity of Kubernetes, such as 500m, 2 or 28Gi, as a number.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9.]+)(m|[kMGT]i?|Ki)?", str(text))
    if not match:
        raise ValueError(f"no quantity: {text!r}")
    number, unit = float(match[1]), match[2]
    return number / 1000 if unit == "m" else number * UNITS.get(unit or "", 1)
