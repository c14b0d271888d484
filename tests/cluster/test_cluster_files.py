"""The cluster files against Ray's own checks and ours, the KubeRay CRDs, and the versions of the project."""

from __future__ import annotations

import configparser
import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from raydeploy.cluster_file import ClusterFile, is_pinned, quantity, read_cluster_file
from raydeploy.preflight import read_pins
from xmatch.errors import InputError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
RAY_UP = ("aws-gpu", "gcp-gpu", "local")
CLOUDS = RAY_UP[:2]
MANIFESTS = ("raycluster", "rayjob-vokenize", "rayjob-train")


def load(name: str) -> dict:
    return yaml.safe_load(path_of(name).read_text())


def path_of(name: str) -> Path:
    return CLUSTER / f"{name}.yaml" if name in RAY_UP else CLUSTER / "kuberay" / f"{name}.yaml"


def read(folder: Path, config: dict) -> ClusterFile:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return read_cluster_file(str(path))


@pytest.mark.parametrize("name", [*RAY_UP, *MANIFESTS])
def test_every_file_is_in_order(name: str) -> None:
    found = read_cluster_file(str(path_of(name)))
    assert found.problems == ()
    assert found.groups
    assert found.images
    if name in RAY_UP:
        jsonschema.validate(load(name), SCHEMA)


def test_every_file_is_checked() -> None:
    assert {path.stem for path in CLUSTER.rglob("*.yaml")} == {*RAY_UP, *MANIFESTS}


@pytest.mark.parametrize("name", CLOUDS)
def test_groups_start_from_nothing_and_prefer_spot(name: str) -> None:
    kinds = load(name)["available_node_types"]
    assert set(kinds) == {"head", "cpu-spot", "cpu-on-demand", "gpu-spot", "gpu-on-demand"}
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    assert kinds["head"]["resources"] == {"CPU": 0}
    for kind in ("cpu", "gpu"):
        spot, on_demand = kinds[f"{kind}-spot"], kinds[f"{kind}-on-demand"]
        assert spot["resources"] == on_demand["resources"]
        assert spot["priority"] > on_demand["priority"]
        assert spot["max_workers"] >= on_demand["max_workers"] > 0
        assert ("GPU" in spot["resources"]) == (kind == "gpu")
        assert "spot" in json.dumps(spot["node_config"]).lower()
        assert "spot" not in json.dumps(on_demand["node_config"]).lower()


@pytest.mark.parametrize("name", RAY_UP)
def test_nodes_install_the_project_as_pinned_and_speak_with_a_token_only(name: str) -> None:
    config = load(name)
    setup = " && ".join(config["setup_commands"])
    assert "-c ~/vokenray/constraints.txt" in setup
    assert 'import _vokenray_search"' in setup, "a node without the extension must not join"
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [c for kind in ("head", "worker") for c in config[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ray start") for command in starts)


BREAKAGES: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "unknown key": ("aws-gpu", lambda c: c.update(clustername="x"), "clustername"),
    "wrong type": ("aws-gpu", lambda c: c.update(max_workers="many"), "max_workers"),
    "unknown head": ("aws-gpu", lambda c: c.update(head_node_type="boss"), "head_node_type"),
    "no node types": ("gcp-gpu", lambda c: c.update(available_node_types={}), "head_node_type"),
    "more at least than at most": (
        "aws-gpu",
        lambda c: c["available_node_types"]["gpu-spot"].update(min_workers=99),
        "max_workers",
    ),
    "no region": ("aws-gpu", lambda c: c["provider"].pop("region"), "region"),
    "no project": ("gcp-gpu", lambda c: c["provider"].pop("project_id"), "project_id"),
    "no instance type": (
        "aws-gpu",
        lambda c: c["available_node_types"]["gpu-spot"]["node_config"].pop("InstanceType"),
        "'gpu-spot' has no InstanceType",
    ),
    "no machine type": (
        "gcp-gpu",
        lambda c: c["available_node_types"]["cpu-spot"]["node_config"].pop("machineType"),
        "'cpu-spot' has no machineType",
    ),
    "no instance profile": (
        "aws-gpu",
        lambda c: c["available_node_types"]["head"]["node_config"].pop("IamInstanceProfile"),
        "'head' has no IamInstanceProfile",
    ),
    "a head that works": (
        "aws-gpu",
        lambda c: c["available_node_types"]["head"].update(resources={"CPU": 4}),
        "head would take work",
    ),
    "an open dashboard": (
        "aws-gpu",
        lambda c: c.update(head_start_ray_commands=["ray start --head --dashboard-host=0.0.0.0"]),
        "dashboard",
    ),
    "floating image": ("aws-gpu", lambda c: c["docker"].update(image="rayproject/ray:latest"), "not pinned"),
    "image without a tag": ("local", lambda c: c["docker"].update(image="rayproject/ray"), "not pinned"),
    "a secret": ("aws-gpu", lambda c: c["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=x"), "secret"),
    "no hosts": ("local", lambda c: c["provider"].pop("worker_ips"), "worker_ips"),
    "node types of hosts": ("local", lambda c: c.update(available_node_types={"a": {}}), "available_node_types"),
    "a worker of pods unread": (
        "raycluster",
        lambda c: c["spec"]["workerGroupSpecs"][1].pop("template"),
        "workerGroupSpecs[1]",
    ),
    "a pod head that works": (
        "raycluster",
        lambda c: c["spec"]["headGroupSpec"].update(rayStartParams={}),
        "head would take work",
    ),
    "pods without a token": ("rayjob-train", lambda c: c["spec"]["rayClusterSpec"].pop("authOptions"), "token"),
    "no Ray version": ("rayjob-vokenize", lambda c: c["spec"]["rayClusterSpec"].pop("rayVersion"), "rayVersion"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_mistake_is_noticed_and_named(name: str, tmp_path: Path) -> None:
    file, breaks, said = BREAKAGES[name]
    config = load(file)
    breaks(config)
    problems = read(tmp_path, config).problems
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "no YAML"), ("a: 1\n", "no cluster's file"), ("", "no cluster's file")]
)
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_cluster_file(str(tmp_path / "x.yaml"))


def test_groups_are_read_alike_from_both_kinds_of_file() -> None:
    cloud, pods = (read_cluster_file(str(path_of(name))).groups for name in ("aws-gpu", "raycluster"))
    assert [group.name for group in cloud] == [group.name for group in pods]
    for group in (*cloud, *pods):
        assert ("GPU" in group.resources) == ("gpu" in group.name)
        assert group.gpu_memory == (24 * 2**30 if "gpu" in group.name else None)
        assert group.resources["memory"] > 2e10
    assert read_cluster_file(str(path_of("aws-gpu"))).most_nodes == 16


@pytest.mark.parametrize(("text", "number"), [("500m", 0.5), ("2", 2), ("28Gi", 28 * 2**30), ("1.5G", 1.5e9)])
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == number
    with pytest.raises(ValueError, match="no quantity"):
        quantity(f"{text}?")


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("a/b:1.2.0", True),
        ("a/b@sha256:00", True),
        ("host:5000/b:0.1.0-gpu", True),
        ("host:5000/b", False),
        ("a/b:latest-py311", False),
        ("a/b:nightly", False),
        ("a/b", False),
    ],
)
def test_pinned_images(image: str, pinned: bool) -> None:
    assert is_pinned(image) is pinned


def project() -> tuple[str, str, str]:
    """Version of the project, pinned version of Ray, and Python without a dot."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    pins = read_pins((ROOT / "constraints.txt").read_text())
    return config["metadata"]["version"], pins["ray"], config["mypy"]["python_version"].replace(".", "")


def test_versions_in_all_files_are_those_of_the_project() -> None:
    version, ray_version, python = project()
    base = f"rayproject/ray:{ray_version}-py{python}-gpu"
    assert {image for name in RAY_UP for image in read_cluster_file(str(path_of(name))).images} == {base}
    pods = [read_cluster_file(str(path_of(name))) for name in MANIFESTS]
    assert {found.ray_version for found in pods} == {ray_version}
    assert {image for found in pods for image in found.images} == {f"REGISTRY/vokenray:{version}"}
    dockerfile = (CLUSTER / "image" / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:[\w.-]+", dockerfile)) == {base}
    assert set(re.findall(r"vokenray[:-](\d+\.\d+\.\d+)", dockerfile)) == {version}
    readme = (CLUSTER / "README.md").read_text()
    assert set(re.findall(r"vokenray:(\d+\.\d+\.\d+)", readme)) <= {version}


def test_the_image_is_built_in_stages_holds_the_extension_and_runs_as_nobody_special() -> None:
    lines = (CLUSTER / "image" / "Dockerfile").read_text().splitlines()
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert len(stages) == 2
    final = "\n".join(lines[stages[-1] :])
    assert re.findall(r"^USER (\S+)", final, re.M) == ["ray"]
    assert "-c /home/ray/constraints.txt" in final
    assert "import _vokenray_search" in final
    for source in re.findall(r"^COPY (?:--chown=ray )([^-\n].*) \S+$", "\n".join(lines), re.M):
        assert all((ROOT / name).exists() for name in source.split()), source


def closed(schema: dict) -> dict:
    """A CRD's schema that refuses properties it does not name."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                schema = schema | {"additionalProperties": False}
        return {key: closed(value) for key, value in schema.items()}
    return [closed(value) for value in schema] if isinstance(schema, list) else schema


def crd(kind: str) -> jsonschema.Draft7Validator:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS does not name a folder with KubeRay's CRDs")
    document = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    [version] = [v for v in document["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": {"type": "string"}}}
    return jsonschema.Draft7Validator(closed(schema))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_the_crds_and_a_typo_does_not(name: str) -> None:
    manifest = load(name)
    validator = crd(manifest["kind"])
    assert [error.message for error in validator.iter_errors(manifest)] == []
    broken = copy.deepcopy(manifest)
    cluster = broken["spec"] if manifest["kind"] == "RayCluster" else broken["spec"]["rayClusterSpec"]
    cluster["workerGroupSpecs"][0]["minReplica"] = 1
    assert [error.message for error in validator.iter_errors(broken)]
