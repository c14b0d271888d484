"""Fixtures for every test: an offline, quiet environment, and one Ray for all tests that need it."""

from __future__ import annotations

import os
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
