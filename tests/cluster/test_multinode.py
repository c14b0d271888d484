"""The same bytes from one node, from two, and from two of which one is killed in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from own_ray import QUICK_DEATHS, OwnRay, add_node, kill_node, nodes, own_head, state, submit, wait_until
from toy_steps import tree

from xmatch.data.vectors import make_vectors, write_vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
SHARDS = 40


class Run(NamedTuple):
    """A finished run: its files, the nodes its workers were on, and how many shards were done at the kill."""

    files: dict[str, bytes]
    nodes: set[str]
    done_before: int


class Cluster:
    """A head that takes no work, nodes of three CPUs each, and the job, whose workers take two: one for each node."""

    def __init__(self, ray: OwnRay, folder: Path, model: str) -> None:
        self.ray, self.folder, self.model = ray, folder, model

    def tokenize(self) -> None:
        corpus, places = self.folder / "corpus.txt", ["--tokenizer", self.model]
        corpus.write_text("the cat sat on the mat .\na dog ran\nhello world !\n" * SHARDS)
        vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        write_vectors(str(self.folder / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(60)], vectors))
        wide = ["--lines_per_shard", "3", "--output", str(self.folder / "tokens")]
        job = submit(self.ray, "jobs/tokenize_corpus.py", "--corpus.path", str(corpus), *places, *wide)
        said = job.communicate(timeout=120)[0]
        assert job.returncode == 0, said

    def vokenize(self, workers: int, kill: str = "") -> Run:
        """One run over so many workers; the node named `kill` is killed as soon as a shard is done."""
        output = self.folder / f"vokens-{workers}{kill}"
        inputs = ["--tokens", str(self.folder / "tokens"), "--keys", str(self.folder / "keys"), "--model", self.model]
        wide = ["--ray.actors", str(workers), "--ray.cpus_per_actor", "2", "--ray.calibration_s", "0"]
        before = {actor["actor_id"] for actor in state(self.ray, "actors")}
        job = submit(
            self.ray, "jobs/vokenize_corpus.py", *inputs, *wide, "--page.write", "false", "--output", str(output)
        )
        markers, done = output / "completions", 0
        try:
            if kill:
                assert wait_until(lambda: any(markers.glob("*.json")), 100)
                done = len(list(markers.glob("*.json")))
                kill_node(self.ray, f"VOKENRAY_TEST_NODE={kill}")
            said = job.communicate(timeout=120)[0]
        finally:
            job.kill()
        assert job.returncode == 0, said
        actors = [actor for actor in state(self.ray, "actors") if actor["actor_id"] not in before]
        used = {actor["node_id"] for actor in actors if "ShardActor" in actor["class_name"]}
        return Run(tree(str(output)), used, done)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model: str) -> Iterator[dict[str, Run]]:
    """On one node, on two, on two of which one is lost."""
    with own_head(["--num-cpus=0", f"--system-config={QUICK_DEATHS}"]) as ray:
        cluster = Cluster(ray, tmp_path_factory.mktemp("nodes"), tiny_model)
        add_node(ray, "a", "--num-cpus=3")
        cluster.tokenize()
        found = {"one": cluster.vokenize(1)}
        add_node(ray, "b", "--num-cpus=3")
        found["two"] = cluster.vokenize(2)
        found["one lost"] = cluster.vokenize(2, kill="b")
        assert wait_until(lambda: len(nodes(ray)) == 1, 30)
        yield found


def test_two_nodes_give_the_bytes_of_one(runs: dict[str, Run]) -> None:
    assert (len(runs["one"].nodes), len(runs["two"].nodes)) == (1, 2)
    assert runs["two"].files == runs["one"].files
    assert len(runs["one"].files) > 2 * SHARDS


def test_a_node_lost_in_the_middle_changes_no_byte(runs: dict[str, Run]) -> None:
    assert 0 < runs["one lost"].done_before < SHARDS
    assert runs["one lost"].files == runs["one"].files
