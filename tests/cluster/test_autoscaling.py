"""The node types of the AWS file on Ray's fake provider: groups grow from nothing, serve the real job, and go again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from own_ray import ROOT, OwnRay, free_ports, kill_node, nodes, own_head, submit, wait_until
from toy_steps import tree

from xmatch.data.vectors import make_vectors, write_vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
SHARDS = 80
HEAD = "ray.head.default"
"""What the fake provider calls its head."""
EMPTY: dict[str, object] = {
    **{name: {} for name in ("file_mounts", "auth")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
    "file_mounts_sync_continuously": False,
}


def fake_config(gcs: str) -> dict:
    """cluster/aws-gpu.yaml on the provider that starts raylets here.

    Dropped is what it cannot honour: image, keys, mounts, commands, machine types, and a node's memory.
    """
    config = yaml.safe_load((ROOT / "cluster" / "aws-gpu.yaml").read_text())
    kinds = {}
    for name, kind in config["available_node_types"].items():
        resources = {k: v for k, v in kind["resources"].items() if k != "memory"}
        kinds[name] = {**kind, "node_config": {}, "resources": {**resources, "object_store_memory": 80_000_000}}
    kinds[HEAD] = kinds.pop(config["head_node_type"])
    provider = {"type": "fake_multinode", "gcs_address": gcs, "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    kept = {key: config[key] for key in ("cluster_name", "max_workers", "upscaling_speed")}
    changed = {"provider": provider, "available_node_types": kinds, "head_node_type": HEAD}
    return {**EMPTY, **kept, **changed, "idle_timeout_minutes": 0.1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[OwnRay]:
    port = free_ports(1)[0]
    path = tmp_path_factory.mktemp("fake") / "cluster.yaml"
    path.write_text(yaml.safe_dump(fake_config(f"127.0.0.1:{port}")))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",  # the fake provider has no files for the other
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "15",
    }
    with own_head(["--num-cpus=0", f"--autoscaling-config={path}"], port, **environment) as ray:
        yield ray


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_model: str) -> dict[str, str]:
    """A corpus, a key bank, a model, and where tokens shall go."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.txt").write_text("the cat sat on the mat .\na dog ran\n" * SHARDS)
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    write_vectors(str(folder / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(60)], vectors))
    names = {name: str(folder / name) for name in ("corpus.txt", "keys", "tokens", "vokens")}
    return names | {"model": tiny_model}


def workers(ray: OwnRay) -> Counter[str]:
    """Living nodes beside the head, by what they are."""
    return Counter("gpu" if "GPU" in node["resources_total"] else "cpu" for node in nodes(ray))


def groups(ray: OwnRay) -> Counter[str]:
    """Names of the groups whose nodes the autoscaler has launched so far."""
    log = next(Path(ray.folder).glob("session_2*/logs/monitor.log")).read_text()
    return Counter(re.findall(r"Launching \d+ nodes, type (\S+)\.", log))


def vokenize(places: dict[str, str], output: str) -> list[str]:
    """Two workers with a GPU each, which no node has two of."""
    inputs = ["--tokens", places["tokens"], "--keys", places["keys"], "--model", places["model"]]
    wide = ["--ray.actors", "2", "--ray.gpus_per_actor", "1", "--page.write", "false"]
    return ["jobs/vokenize_corpus.py", *inputs, *wide, "--output", output]


def serve(ray: OwnRay, *arguments: str) -> Counter[str]:
    """Submit a job and wait for it; the most living workers of each kind that were seen meanwhile."""
    job, seen = submit(ray, *arguments), Counter[str]()

    def is_over() -> bool:
        nonlocal seen
        seen |= workers(ray)
        return job.poll() is not None

    try:
        assert wait_until(is_over, 150), f"not done; workers so far: {seen}"
    finally:
        job.kill()
    said = job.communicate()[0]
    assert job.returncode == 0, said
    return seen


def all_gone(ray: OwnRay) -> bool:
    return wait_until(lambda: not workers(ray), 60)


@pytest.fixture(scope="module")
def undisturbed(cluster: OwnRay, places: dict[str, str]) -> tuple[list[Counter[str]], list[bool]]:
    """Tokens by the CPU group, vokens by the GPU group: workers seen, and whether they were gone before and after."""
    gone = [not workers(cluster)]
    tokenize = ["jobs/tokenize_corpus.py", "--corpus.path", places["corpus.txt"], "--tokenizer", places["model"]]
    seen = [serve(cluster, *tokenize, "--lines_per_shard", "2", "--output", places["tokens"])]
    gone.append(all_gone(cluster))
    seen.append(serve(cluster, *vokenize(places, places["vokens"])))
    gone.append(all_gone(cluster))
    return seen, gone


def test_groups_grow_from_nothing_and_fall_back_to_nothing(undisturbed, cluster: OwnRay) -> None:
    seen, gone = undisturbed
    assert gone == [True, True, True]
    assert seen == [Counter(cpu=1), Counter(gpu=2)]
    assert set(groups(cluster)) == {"cpu-spot", "gpu-spot"}, "spot comes first, and the head's type is never launched"


def test_a_run_survives_the_loss_of_a_node(
    undisturbed, cluster: OwnRay, places: dict[str, str], tmp_path: Path
) -> None:
    job = submit(cluster, *vokenize(places, str(tmp_path / "v")))
    completions = tmp_path / "v" / "completions"
    try:
        assert wait_until(lambda: len(nodes(cluster)) == 2 and any(completions.glob("*.json")), 120)
        lost = nodes(cluster)[0]["node_id"]
        kill_node(cluster, f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={lost}")
        done = len(list(completions.glob("*.json")))
        said = job.communicate(timeout=150)[0]
    finally:
        job.kill()
    assert job.returncode == 0, said
    assert 0 < done < SHARDS
    assert lost not in [node["node_id"] for node in nodes(cluster)]
    here, there = tree(str(tmp_path / "v")), tree(places["vokens"])
    assert here == there
    assert len(here) > 2 * SHARDS
    assert all_gone(cluster)
