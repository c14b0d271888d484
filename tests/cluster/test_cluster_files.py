"""The cluster files against Ray's own checks and the KubeRay CRDs, with checks of our own for what those miss."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def aws() -> dict:
    return yaml.safe_load((CLUSTER / "aws-gpu.yaml").read_text())


def check(config: dict) -> None:
    """Ray's schema and its own preparation, then what they let pass."""
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert config["provider"].get("region"), "no region"
    for name, kind in config["available_node_types"].items():
        assert kind["node_config"].get("InstanceType"), f"{name} has no InstanceType"
        assert kind["node_config"].get("IamInstanceProfile"), f"{name} has no instance profile"
    assert ":" in config["docker"]["image"], "the image is not pinned"
    assert "latest" not in config["docker"]["image"], "the image is not pinned"


def test_the_cluster_is_valid_and_its_head_takes_no_work() -> None:
    config = aws()
    check(config)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1


def test_no_secret_is_in_the_files() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        text = path.read_text().lower()
        assert not any(word in text for word in ("aws_secret", "aws_access", "password", "private_key", "akia"))


BREAKAGES = {
    "unknown key": lambda c: c.update(clustername="x"),
    "wrong type": lambda c: c.update(max_workers="many"),
    "unknown head": lambda c: c.update(head_node_type="boss"),
    "no region": lambda c: c["provider"].pop("region"),
    "no instance type": lambda c: c["available_node_types"]["gpu"]["node_config"].pop("InstanceType"),
    "floating image": lambda c: c["docker"].update(image="rayproject/ray:latest"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_mistake_is_noticed(name: str) -> None:
    config = aws()
    BREAKAGES[name](config)
    with pytest.raises((jsonschema.ValidationError, AssertionError, ValueError, KeyError)):
        check(config)


def closed(schema: dict) -> dict:
    """A CRD's schema that refuses properties it does not name."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                schema = schema | {"additionalProperties": False}
        return {key: closed(value) for key, value in schema.items()}
    return [closed(value) for value in schema] if isinstance(schema, list) else schema


def crd(name: str) -> dict:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS does not name a folder with KubeRay's CRDs")
    document = yaml.load((Path(folder) / f"ray.io_{name}.yaml").read_text(), Loader=yaml.CSafeLoader)
    [version] = [v for v in document["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": {"type": "string"}}}
    return closed(schema)


def test_the_ray_job_fits_the_crd_and_a_typo_does_not() -> None:
    schema = crd("rayjobs")
    manifest = yaml.safe_load((CLUSTER / "kuberay" / "rayjob-vokenize.yaml").read_text())
    validator = jsonschema.Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert [error.message for error in validator.iter_errors(manifest)]
