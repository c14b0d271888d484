"""A job submitted to a local cluster, exactly as a user submits it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import make_images

from xmatch.search.native_backend import is_fast

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a head started for these tests, and the environment to use it; ended by process group."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    port, dashboard, client, agent, metrics = free_ports(5)
    command = [RAY, "start", "--head", "--block", "--num-cpus=3", "--object-store-memory=200000000"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [
        f"--metrics-export-port={metrics}",
        f"--temp-dir={tempfile.mkdtemp(prefix='r')}",
        "--disable-usage-stats",
    ]
    head = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            listing = [RAY, "job", "list", "--address", address]
            if subprocess.run(listing, env=environment, capture_output=True).returncode == 0:
                break
            time.sleep(1)
        yield address, environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def submit(cluster: tuple[str, dict[str, str]], *arguments: str) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_a_submitted_job_does_what_the_script_does(cluster, tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat\n\na dog ran\n")
    places = ["--corpus.path", str(tmp_path / "corpus.txt"), "--tokenizer", tiny_model]
    done = submit(cluster, "jobs/tokenize_corpus.py", *places, "--output", str(tmp_path / "submitted"))
    assert done.returncode == 0, done.stdout + done.stderr
    script = [sys.executable, "jobs/tokenize_corpus.py", *places, "--output", str(tmp_path / "script")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run(script, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=200)
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("submitted", "script"))
    assert one == two
    assert one["counts"] == {"lines": 3, "tokens": 6, "empty_lines": 1}


def test_the_workers_of_a_submitted_job_search_with_the_native_extension(cluster, tmp_path: Path, tiny_model) -> None:
    if not is_fast():
        pytest.skip("the extension is not built, or this processor has no use for it")
    images = make_images(tmp_path / "images")
    (tmp_path / "corpus.txt").write_text("the cat sat\na dog ran\n")
    keys, tokens, vokens = (str(tmp_path / name) for name in ("keys", "tokens", "vokens"))
    commands = [
        ["jobs/embed.py", "--side", "image", "--model", tiny_model, "--images.root", images]
        + ["--images.set_name", "vg_toy", "--output", keys],
        ["jobs/tokenize_corpus.py", "--corpus.path", str(tmp_path / "corpus.txt"), "--tokenizer", tiny_model]
        + ["--output", tokens],
        ["jobs/vokenize_corpus.py", "--tokens", tokens, "--keys", keys, "--model", tiny_model, "--output", vokens],
    ]
    for command in commands:
        done = submit(cluster, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((Path(vokens) / "run" / "report.json").read_text())
    assert report["values"]["search"]["backend"] == "native"
    assert report["values"]["search"]["queries"] > 0


def test_a_relative_output_is_refused_with_the_reason(cluster, tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat\n")
    places = ["--corpus.path", str(tmp_path / "corpus.txt"), "--tokenizer", tiny_model]
    done = submit(cluster, "jobs/tokenize_corpus.py", *places, "--output", "somewhere")
    assert done.returncode != 0
    assert "temporary copy" in done.stdout + done.stderr
