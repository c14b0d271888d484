"""The node types of the AWS file on Ray's fake provider: groups grow from nothing, serve the real job, and go again."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from own_ray import ROOT, OwnRay, free_ports, of_node, own_head, submit, submit_and_wait, wait_until
from toy_steps import tree

from xmatch.data.vectors import make_vectors, write_vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SHARDS = 120
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


def workers(ray: OwnRay) -> dict[str, str]:
    """Living nodes beside the head: id and group, which the resources tell."""
    with urllib.request.urlopen(f"{ray.dashboard}/api/v0/nodes?limit=1000", timeout=60) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    alive = [node for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]]
    return {node["node_id"]: "gpu" if "GPU" in node["resources_total"] else "cpu" for node in alive}


def vokenize(places: dict[str, str], output: str) -> list[str]:
    """Two workers with a GPU each, which no node has two of."""
    inputs = ["--tokens", places["tokens"], "--keys", places["keys"], "--model", places["model"]]
    wide = ["--ray.actors", "2", "--ray.gpus_per_actor", "1", "--page.write", "false"]
    return ["jobs/vokenize_corpus.py", *inputs, *wide, "--output", output]


def test_x(cluster, places, tmp_path) -> None:
    import time
    t0=time.time()
    def watch(j, limit, extra=None):
        t1=time.time()
        last=None
        while j.poll() is None and time.time()-t1 < limit:
            w=Counter(workers(cluster).values())
            if w!=last: print(round(time.time()-t0,1), w, extra and len(list(Path(extra).glob("*.json"))), flush=True)
            last=w
            time.sleep(1)
        if j.poll() is None: j.kill(); print("KILLED")
        print(round(time.time()-t0,1), j.communicate()[0][-700:], flush=True)
    j = submit(cluster, "jobs/tokenize_corpus.py", "--corpus.path", places["corpus.txt"], "--tokenizer", places["model"], "--lines_per_shard", "2", "--output", places["tokens"])
    watch(j, 60)
    j = submit(cluster, *vokenize(places, str(tmp_path/"v")))
    watch(j, 90, tmp_path/"v"/"completions")
    while time.time()-t0 < 200:
        w=Counter(workers(cluster).values())
        print(round(time.time()-t0,1), w, flush=True)
        if not w: break
        time.sleep(1)
