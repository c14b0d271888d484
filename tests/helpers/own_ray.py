"""Ray heads and raylets of a test's own: on free ports, and ended by what they carry in their environment."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
MARK = "VOKENRAY_TEST_CLUSTER"
QUICK_DEATHS = (
    '{"health_check_initial_delay_ms":1000,"health_check_period_ms":500,"health_check_failure_threshold":4,'
    '"health_check_timeout_ms":3000}'
)
"""A lost node is noticed within seconds."""


class OwnRay(NamedTuple):
    """A running cluster.

    Attributes:
        environment: for every command that uses it; carries the mark by which its processes are found.
        gcs: address that raylets join.
        dashboard: address that jobs are submitted to.
        folder: of its session, with the logs.
    """

    environment: dict[str, str]
    gcs: str
    dashboard: str
    folder: str


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; below those that Ray gives to workers."""
    found: list[int] = []
    while len(found) < count:
        port = 5000 + secrets.randbelow(5000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def processes(*variables: str) -> list[int]:
    """Living processes that carry all of these NAME=value in their environment, of those that may be read."""
    wanted = {variable.encode() for variable in variables}
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if wanted <= _environment(pid)]


def _environment(pid: int) -> set[bytes]:
    """A process's variables; none where it is gone."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def kill_node(ray: OwnRay, variable: str) -> None:
    """Kill at once whatever runs on one node, which carries this NAME=value."""
    for pid in processes(f"{MARK}={ray.environment[MARK]}", variable):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end(mark: str) -> None:
    """End every process with this mark, politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        for pid in processes(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_until(lambda: not processes(mark), 10):
            return


def wait_until(fact: Callable[[], bool], seconds: float) -> bool:
    """Whether a fact comes true in time."""
    end_of_waiting = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > end_of_waiting:
            return False
        time.sleep(0.3)
    return True


@contextmanager
def own_head(
    arguments: Sequence[str], gcs_port: int | None = None, auth: str = "disabled", **environment: str
) -> Iterator[OwnRay]:
    """A head, for as long as the block runs; all that it starts, and all that joins it with its environment, ends too.

    Args:
        arguments: for `ray start --head`.
        gcs_port: where it listens, if that must be known before.
        auth: RAY_AUTH_MODE of head and users.
        environment: more variables.
    """
    mark = f"{MARK}={secrets.token_hex(8)}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "CUDA_VISIBLE_DEVICES"}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    clean |= {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: mark.split("=")[1],
        **environment,
    }
    dashboard, client, agent, metrics, gcs, agent_grpc = free_ports(6)
    folder = tempfile.mkdtemp(prefix="r")
    command = [RAY, "start", "--head", "--block", "--object-store-memory=150000000", "--disable-usage-stats"]
    command += [f"--port={gcs_port or gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--metrics-export-port={metrics}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(command, env=clean, start_new_session=True, **quiet)
    ray = OwnRay(clean, f"127.0.0.1:{gcs_port or gcs}", f"http://127.0.0.1:{dashboard}", folder)
    listing = [RAY, "job", "list", "--address", ray.dashboard]
    try:
        came_up = wait_until(lambda: subprocess.run(listing, env=clean, capture_output=True).returncode == 0, 120)
        assert came_up, "the head did not come up"
        yield ray
    finally:
        end(mark)
        head.wait(30)


def add_node(ray: OwnRay, name: str, *arguments: str) -> None:
    """Have a raylet join; its processes carry VOKENRAY_TEST_NODE=name."""
    command = [RAY, "start", "--block", f"--address={ray.gcs}", "--node-ip-address=127.0.0.1", *arguments]
    command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
    before = len(nodes(ray))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**ray.environment, "VOKENRAY_TEST_NODE": name}
    subprocess.Popen([*command, "--disable-usage-stats"], env=environment, start_new_session=True, **quiet)
    assert wait_until(lambda: len(nodes(ray)) > before, 60), "the node did not join"


def nodes(ray: OwnRay) -> list[dict]:
    """Living nodes beside the head, as Ray's state API gives them."""
    listed = state(ray, "nodes")
    return [node for node in listed if node["state"] == "ALIVE" and not node["is_head_node"]]


def state(ray: OwnRay, kind: str) -> list[dict]:
    """What Ray's state API lists, such as `nodes` or `actors`."""
    with urllib.request.urlopen(f"{ray.dashboard}/api/v0/{kind}?limit=1000&detail=1", timeout=60) as answer:
        found: list[dict] = json.load(answer)["data"]["result"]["result"]
    return found


def submit(ray: OwnRay, job: str, *arguments: str) -> subprocess.Popen[str]:
    """Submit a job; the process of `ray job submit`, whose output waits in a pipe.

    The code is found by PYTHONPATH: nodes on one machine share Ray's copy of a working directory, and each that joins
    writes it anew under the feet of the others. tests/jobs/test_submit.py submits with --working-dir, as users do.
    """
    command = [RAY, "job", "submit", "--address", ray.dashboard, "--", "python", str(ROOT / job), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ray.environment, cwd=ROOT, text=True, **pipes)
