"""Chaos: the vokenize job on a local cluster of three nodes, while a seeded script kills, freezes, cuts and refuses.

    PYTHONPATH=tests/helpers:. python tests/chaos.py --kills 30 --seed 0 --table docs/chaos.md

After each disturbance the same command is run until it succeeds; then the output must be that of an undisturbed run,
byte for byte, and no shard that was finished before may have been written again.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
from own_ray import (
    MARK,
    QUICK_DEATHS,
    ROOT,
    OwnRay,
    add_node,
    free_ports,
    kill_node,
    nodes,
    own_head,
    processes,
    wait_until,
)
from small_models import save_tiny_model
from toy_steps import tree

from xmatch.data.vectors import make_vectors, write_vectors

SHARDS, LINES_PER_SHARD, KILLS_PER_RUN = 40, 60, 3
VICTIMS = {"worker": "ray::MapWorker(MapBatches(ShardActor))", "search actor": "ray::SearchShard"}
KINDS = ["worker", "worker", "search actor", "raylet", "driver"]
RUN_S = 240.0


class Outcome(NamedTuple):
    """What became of one disturbed run."""

    what: str
    kills: int
    runs: int
    same: bool
    lost: int
    doubled: int
    again: int


class Chaos:
    """A cluster and the job's inputs."""

    def __init__(self, ray: OwnRay, folder: Path, seed: int) -> None:
        self.ray, self.folder, self.random, self.spare = ray, folder, random.Random(seed), 0
        self.model = save_tiny_model(folder / "model")
        corpus = folder / "corpus.txt"
        text = [f"the cat sat on the mat {i} .\na dog ran {i}\nhello world {i} !\n" for i in range(20 * SHARDS)]
        corpus.write_text("".join(text))
        vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        write_vectors(str(folder / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(60)], vectors))
        tokenize = ["--corpus.path", str(corpus), "--tokenizer", self.model, "--output", str(folder / "tokens")]
        assert self.job("tokenize_corpus", *tokenize, "--lines_per_shard", str(LINES_PER_SHARD)).wait(RUN_S) == 0
        assert self.vokenize(folder / "undisturbed").wait(RUN_S) == 0
        self.expected = tree(str(folder / "undisturbed"))

    def job(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A driver of its own, connected to the cluster."""
        log = open(self.folder / f"{name}.log", "ab")
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments, "--ray.calibration_s", "0"]
        variables = {**self.ray.environment, "RAY_ADDRESS": self.ray.gcs, **environment}
        return subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def vokenize(self, output: Path | str, **environment: str) -> subprocess.Popen[bytes]:
        """The job under test: two workers, two shards of the key bank in actors of their own."""
        inputs = ["--tokens", str(self.folder / "tokens"), "--keys", str(self.folder / "keys"), "--model", self.model]
        wide = [
            "--ray.actors",
            "2",
            "--search.shards",
            "2",
            "--ray.faults.frozen_after_s",
            "5",
            "--page.write",
            "false",
        ]
        return self.job("vokenize_corpus", *inputs, *wide, "--output", str(output), **environment)

    def pids(self, title: str) -> list[int]:
        """Processes of the cluster whose title begins so."""
        found = []
        for pid in processes(f"{MARK}={self.ray.environment[MARK]}"):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                    found.append(pid)
        return found

    def strike(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        """Kill one of a kind; whether there was one."""
        if kind == "driver":
            driver.kill()
            return True
        if kind == "raylet":
            name = f"spare-{self.spare}"
            kill_node(self.ray, f"VOKENRAY_TEST_NODE={name}")
            self.spare += 1
            wait_until(lambda: len(nodes(self.ray)) == 1, 30)
            add_node(self.ray, f"spare-{self.spare}", "--num-cpus=4")
            return True
        victims = self.pids(VICTIMS[kind])
        for pid in victims[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(victims)

    def disturbed(self, number: int, kinds: list[str]) -> Outcome:
        """One run with some kills, each after some more shards are done."""
        output, marks = self.folder / f"run-{number}", sorted(self.random.sample(range(SHARDS - 2), len(kinds)))
        runs, before = 1, {}
        driver = self.vokenize(output)
        for kind, mark in zip(kinds, marks, strict=True):
            ended = wait_until(lambda: done(output) >= mark or driver.poll() is not None, RUN_S)  # noqa: B023
            assert ended, f"run {number} stood still before {kind} was killed"
            before = times(output)
            while driver.poll() is None and not self.strike(kind, driver):
                time.sleep(0.1)
            if driver.wait(RUN_S) if kind == "driver" else driver.poll():
                runs, driver = runs + 1, self.vokenize(output)
        while driver.wait(RUN_S) != 0:
            runs, driver = runs + 1, self.vokenize(output)
            assert runs < 12, f"run {number} never succeeds"
        return self.judged("kill " + ", ".join(kinds), len(kinds), runs, output, before)

    def judged(self, what: str, kills: int, runs: int, output: Path, before: dict[str, int]) -> Outcome:
        """Compare with the undisturbed run."""
        found, after = tree(str(output)), times(output)
        again = sum(after.get(name) != stamp for name, stamp in before.items())
        lost, doubled = line_faults(output)
        shutil.rmtree(output, ignore_errors=True)
        return Outcome(what, kills, runs, found == self.expected, lost, doubled, again)

    def frozen(self) -> Outcome:
        """SIGSTOP for a worker: the watchdog ends it."""
        output = self.folder / "frozen"
        driver = self.vokenize(output)
        assert wait_until(lambda: done(output) >= 5, RUN_S)
        before = times(output)
        os.kill(self.pids(VICTIMS["worker"])[0], signal.SIGSTOP)
        assert driver.wait(RUN_S) == 0
        return self.judged("freeze a worker", 0, 1, output, before)

    def truncated(self) -> Outcome:
        """An input file is cut short: refused by name; mended: goes on."""
        victim, output = self.folder / "tokens" / "shards" / "part-00030.parquet", self.folder / "truncated"
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2])
        assert self.vokenize(output).wait(RUN_S) == 2
        victim.write_bytes(whole)
        assert self.vokenize(output).wait(RUN_S) == 0
        return self.judged("truncate an input file", 0, 2, output, {})

    def full_disk(self) -> Outcome | None:
        """The output lies on a file system that is too small, then on a larger one; None where mounting is refused."""
        output = self.folder / "small"
        output.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(output)]
        if subprocess.run(mount, capture_output=True).returncode:
            return None
        try:
            assert self.vokenize(output).wait(RUN_S) != 0
            before = times(output)
            subprocess.run(["mount", "-o", "remount,size=64m", str(output)], check=True)
            assert self.vokenize(output).wait(RUN_S) == 0
            copy = self.folder / "small-copy"
            shutil.copytree(output, copy, copy_function=shutil.copy2)
            return self.judged("fill the output disk", 0, 2, copy, before)
        finally:
            subprocess.run(["umount", "-l", str(output)], check=False)

    def refused(self) -> Outcome:
        """A proxy before an S3 server answers 500, 503 or late, for one request in five."""
        output, local = "s3://chaos/vokens", self.folder / "from-store"
        with s3_server() as port, proxy(port, self.random) as (front, faults):
            place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{front}", "AWS_ACCESS_KEY_ID": "test"}
            place |= {"AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
            with own_head(["--num-cpus=7"], **place, AWS_EC2_METADATA_DISABLED="true") as ray:
                inner, self.ray = self.ray, ray
                runs = 1
                while self.vokenize(output).wait(2 * RUN_S):
                    runs += 1
                    assert runs < 6, "the store run never succeeds"
                self.ray = inner
            import boto3

            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="test",
                aws_secret_access_key="test", region_name="us-east-1")  # fmt: skip
            for page in client.get_paginator("list_objects_v2").paginate(Bucket="chaos"):
                for item in page["Contents"]:
                    path = local / item["Key"].removeprefix("vokens/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    client.download_file("chaos", item["Key"], str(path))
        said = ", ".join(f"{count} x {name}" for name, count in sorted(faults.items()))
        return self.judged(f"an object store that fails ({said})", 0, runs, local, {})


def done(output: Path) -> int:
    """Finished shards."""
    return len(list((output / "completions").glob("*.json")))


def times(output: Path) -> dict[str, int]:
    """When each finished shard and its marker were written."""
    names = [path.stem for path in (output / "completions").glob("*.json")]
    paths = [p for n in names for p in (output / "completions" / f"{n}.json", output / "shards" / f"{n}.parquet")]
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in paths}


def line_faults(output: Path) -> tuple[int, int]:
    """Lines of the corpus that are missing in the output, and those that are there twice."""
    import pyarrow.parquet as pq

    found = [i for p in sorted((output / "shards").glob("*.parquet")) for i in pq.read_table(p)["line_id"].to_pylist()]
    return SHARDS * LINES_PER_SHARD - len(set(found)), len(found) - len(set(found))


@contextmanager
def s3_server() -> Iterator[int]:
    """A server in a process of its own, with the bucket `chaos`; its port."""
    import boto3

    [port] = free_ports(1)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="test",
        aws_secret_access_key="test", region_name="us-east-1")  # fmt: skip
    try:
        for _ in range(100):
            with suppress(Exception):
                client.create_bucket(Bucket="chaos")
                break
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def proxy(port: int, chance: random.Random) -> Iterator[tuple[int, collections.Counter[str]]]:
    """A server that passes requests on, but for one in five; its port, and what it did to these."""
    faults: collections.Counter[str] = collections.Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: object) -> None:
            pass

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # what follows the last chunk
                pass
            return whole

        def _pass_on(self) -> None:
            headers, body = dict(self.headers), self._body()
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                for name in ("Transfer-Encoding", "Content-Encoding", "X-Amz-Trailer", "X-Amz-Decoded-Content-Length"):
                    headers = {n: v for n, v in headers.items() if n.lower() != name.lower()}
            headers = {n: v for n, v in headers.items() if n.lower() not in ("expect", "content-length")}
            fault = chance.choice(["500", "503", "late"]) if chance.random() < 0.2 else ""
            faults[fault or "passed on"] += 1
            if fault in ("500", "503"):
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault:
                time.sleep(1.5)
            inner = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            inner.request(self.command, self.path, body, headers)
            answer = inner.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, faults
    finally:
        server.shutdown()


def table(outcomes: list[Outcome], skipped: list[str], seed: int) -> str:
    """The result as a page."""
    kills = collections.Counter(kind for o in outcomes if o.kills for kind in o.what.removeprefix("kill ").split(", "))
    said = ", ".join(f"{count} of a {kind}" for kind, count in sorted(kills.items()))
    total = sum(o.kills for o in outcomes)
    lead = (
        f"`tests/chaos.py`, seed {seed}: {total} kills ({said}) and the disturbances below, on a head and two nodes "
        f"on one machine; {SHARDS} shards of {LINES_PER_SHARD} lines, two workers, two search actors. *Again* counts "
        "files of shards that were finished before and were written again."
    )
    head = "| disturbance | runs until done | same bytes | lines lost | doubled | again |"
    lines = ["# Chaos", "", lead, "", head, "|---|---|---|---|---|---|"]
    lines += [
        f"| {o.what} | {o.runs} | {'yes' if o.same else '**no**'} | {o.lost} | {o.doubled} | {o.again} |"
        for o in outcomes
    ]
    lines += [f"| {name} | not done: mounting was refused | | | | |" for name in skipped]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", default="")
    parser.add_argument("--only", default="", help="kills, frozen, truncated, full_disk or refused")
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with own_head(["--num-cpus=0", f"--system-config={QUICK_DEATHS}"]) as ray:
        add_node(ray, "steady", "--num-cpus=4")
        add_node(ray, "spare-0", "--num-cpus=4")
        chaos = Chaos(ray, folder, arguments.seed)
        others: dict[str, Callable[[], Outcome | None]] = {
            "frozen": chaos.frozen, "truncated": chaos.truncated, "full_disk": chaos.full_disk, "refused": chaos.refused
        }  # fmt: skip
        for name, disturb in others.items():
            if arguments.only in ("", name):
                outcome = disturb()
                skipped += [name] if outcome is None else []
                outcomes += [outcome] if outcome is not None else []
                print(outcome or f"{name}: mounting is refused here", flush=True)
        left = arguments.kills if arguments.only in ("", "kills") else 0
        for number in range(-(-left // KILLS_PER_RUN)):
            kinds = chaos.random.choices(KINDS, k=min(KILLS_PER_RUN, left - number * KILLS_PER_RUN))
            outcomes.append(chaos.disturbed(number, kinds))
            print(outcomes[-1], flush=True)
    if arguments.table:
        Path(arguments.table).write_text(table(outcomes, skipped, arguments.seed))
    shutil.rmtree(folder, ignore_errors=True)
    return int(any(not o.same or o.lost or o.doubled or o.again for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
