"""Nodes that can see neither the driver's model folder nor its hub cache load what the driver staged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_cache import fill_hub_cache
from own_ray import OwnRay, add_node, own_head, submit, wait_until

from xmatch.data import files
from xmatch.data.vectors import make_vectors, write_vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "someone/matcher"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tiny_model: str) -> Iterator[tuple[OwnRay, Path]]:
    """A head with the hub's cache, where drivers run, and a node with an empty one, where workers run; and a folder."""
    folder = tmp_path_factory.mktemp("staged")
    fill_hub_cache(folder / "home", NAME, tiny_model)
    shutil.copytree(tiny_model, folder / "model")
    (folder / "corpus.txt").write_text("the cat sat on the mat .\na dog ran\nhello world !\n" * 4)
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    write_vectors(str(folder / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(60)], vectors))
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    with own_head(["--num-cpus=0"], **environment) as ray:
        empty = {"HF_HOME": str(folder / "empty")}
        add_node(ray._replace(environment={**ray.environment, **empty}), "other", "--num-cpus=3")
        yield ray, folder


def finished(ray: OwnRay, job: str, *arguments: str) -> str:
    process = submit(ray, job, *arguments, "--ray.calibration_s", "0")
    try:
        said = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def test_a_hub_name_is_loaded_where_no_hub_is(cluster: tuple[OwnRay, Path], tiny_model: str) -> None:
    ray, folder = cluster
    tokens, vokens = folder / "tokens", folder / "vokens"
    finished(ray, "jobs/tokenize_corpus.py", "--corpus.path", str(folder / "corpus.txt"), "--tokenizer", NAME,
        "--lines_per_shard", "3", "--output", str(tokens))  # fmt: skip
    assert files.read_json(str(tokens / "identity.json"))["tokenizer"].startswith("sha256 ")
    places = ["--tokens", str(tokens), "--keys", str(folder / "keys"), "--page.write", "false"]
    finished(ray, "jobs/vokenize_corpus.py", *places, "--model", NAME, "--output", str(vokens))
    assert files.read_json(str(vokens / "manifest.json"))["counts"]["lines"] == 12
    assert [path.name for path in (vokens / "models").glob("*/model.safetensors")] == ["model.safetensors"]


def test_a_folder_that_is_gone_once_staged_is_not_missed(cluster: tuple[OwnRay, Path]) -> None:
    ray, folder = cluster
    tokens = folder / "tokens-of-a-folder"
    places = ["--corpus.path", str(folder / "corpus.txt"), "--tokenizer", str(folder / "model")]
    wide = ["--lines_per_shard", "3", "--ray.calibration_s", "0", "--output", str(tokens)]
    process = submit(ray, "jobs/tokenize_corpus.py", *places, *wide)
    try:
        assert wait_until(lambda: any((tokens / "models").glob("*/staged.json")), 100)
        assert not any((tokens / "completions").glob("*.json"))
        (folder / "model").rename(folder / "gone")
        said = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert files.read_json(str(tokens / "manifest.json"))["counts"]["lines"] == 12
    assert files.read_json(str(tokens / "identity.json"))["tokenizer"] == str(folder / "model")
