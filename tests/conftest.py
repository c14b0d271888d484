"""Fixtures for every test: an offline, quiet environment, and one Ray for all tests that need it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
os.environ |= {
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "helpers")]),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
}

import pytest
from small_models import CAPTIONS, make_images, save_tiny_model, tiny_vocabulary

import raydeploy  # noqa: F401 - sets Ray's environment before any test imports ray


@pytest.fixture(scope="session")
def ray_here():
    """A small embedded Ray, shared by all tests of the session."""
    from raydeploy.connect import RayConfig, connect

    with connect(RayConfig(num_cpus=2, object_store_mb=200)):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a saved dual encoder with random weights."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> str:
    """Folder of twelve small distinct JPEGs, a.jpg … l.jpg."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def tokenizer():
    """The toy WordPiece tokenizer of the golden cases."""
    return tiny_vocabulary()


@pytest.fixture
def captions() -> list[str]:
    """A few captions in the toy vocabulary."""
    return list(CAPTIONS)


class S3Server:
    """An S3 server in a process of its own, with the bucket `runs`."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("moto.server")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = open(folder / "log", "wb")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{port}"

    def environment(self, key: str, secret: str) -> dict[str, str]:
        """Environment of a process that uses this server with these credentials."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        place = {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        return {**kept, **place, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}

    def client(self, service: str):
        """A client of one of the server's services, for one who may do everything."""
        import boto3

        place = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return boto3.client(service, **place, aws_access_key_id="test", aws_secret_access_key="test")

    def start(self) -> None:
        """Wait until it answers, and make the bucket."""
        client = self.client("s3")
        for attempt in range(100):
            try:
                client.create_bucket(Bucket="runs")
                return
            except Exception:
                if attempt == 99:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory):
    """Environment of a process that uses an S3 server, a real one in a process of its own, with the bucket `runs`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server.environment("test", "a-secret-of-the-tests")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def strict_s3(tmp_path_factory):
    """Environments, by user, of an S3 server that checks signatures and rights.

    `owner` may do all, `reader` read, `nobody` nothing, and `node` what cluster/README.md gives a node; `forger` has a
    wrong secret, `stranger` an unknown key.
    """
    import requests

    server = S3Server(tmp_path_factory.mktemp("strict-s3"))
    rights = {"owner": ["s3:*"], "reader": ["s3:GetObject", "s3:List*"], "nobody": ["sqs:*"]}
    rights["node"] = re.findall(r"`(s3:\w+)`", (TESTS.parent / "cluster" / "README.md").read_text())
    try:
        server.start()
        users, found = server.client("iam"), {}
        for name, actions in rights.items():
            statement = [{"Effect": "Allow", "Action": actions, "Resource": "*"}]
            policy = json.dumps({"Version": "2012-10-17", "Statement": statement})
            users.create_user(UserName=name)
            users.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
            made = users.create_access_key(UserName=name)["AccessKey"]
            found[name] = server.environment(made["AccessKeyId"], made["SecretAccessKey"])
        found["forger"] = found["owner"] | {"AWS_SECRET_ACCESS_KEY": "not-the-secret-of-that-key"}
        found["stranger"] = server.environment("AKIAOFNOBODYATALL000", "the-secret-of-nobody-at-all")
        requests.post(f"{server.url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()  # from here on
        yield found
    finally:
        server.stop()


@pytest.fixture
def become(monkeypatch):
    """Makes this process use an S3 environment: its server and credentials, which the clients else remember."""
    import boto3

    from xmatch.data import stores

    def use(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        stores._s3_store.cache_clear()

    yield use
    stores._s3_store.cache_clear()
