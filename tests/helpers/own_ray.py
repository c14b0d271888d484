"""Ray heads and raylets of a test's own: on free ports, and ended by what they carry in their environment."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def processes(mark: str) -> list[int]:
    """Living processes that carry a mark, of those that may be read."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if f"{MARK}={mark}".encode() in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    """A process's variables; none where it is gone, or may not be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def of_node(ray: OwnRay, node_id: str) -> list[int]:
    """The processes of one of its nodes that the fake provider started."""
    wanted = f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node_id}".encode()
    return [pid for pid in processes(ray.environment[MARK]) if wanted in _environment(pid)]


def end(mark: str) -> None:
    """End every process with this mark, politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        for pid in processes(mark):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
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
    mark = secrets.token_hex(8)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    clean |= {"RAY_AUTH_MODE": auth, "RAY_USAGE_STATS_ENABLED": "0", MARK: mark, **environment}
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


def submit(ray: OwnRay, *arguments: str) -> subprocess.Popen[str]:
    """Submit `python <arguments>` as a user does; the process of `ray job submit`, whose output waits in a pipe."""
    command = [RAY, "job", "submit", "--address", ray.dashboard, "--working-dir", ".", "--", "python", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ray.environment, cwd=ROOT, text=True, **pipes)


def submit_and_wait(ray: OwnRay, *arguments: str, seconds: float = 200) -> str:
    """Submit a job and wait; what it said.

    Raises:
        AssertionError: it failed; with what it said.
    """
    job = submit(ray, *arguments)
    said = job.communicate(timeout=seconds)[0]
    assert job.returncode == 0, said
    return said
