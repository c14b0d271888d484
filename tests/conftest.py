"""Fixtures for every test: an offline, quiet environment, and one Ray for all tests that need it."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory):
    """Environment of a process that uses an S3 server, a real one in a process of its own, with the bucket `runs`."""
    pytest.importorskip("moto.server")
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path_factory.mktemp("s3") / "log", "wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    place = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=place["AWS_ENDPOINT_URL"],
        aws_access_key_id=place["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=place["AWS_SECRET_ACCESS_KEY"],
        region_name=place["AWS_DEFAULT_REGION"],
    )
    try:
        for _ in range(100):
            try:
                client.create_bucket(Bucket="runs")
                break
            except Exception:
                time.sleep(0.2)
        yield {**os.environ, **place}
    finally:
        server.terminate()
        server.wait(20)
        log.close()
