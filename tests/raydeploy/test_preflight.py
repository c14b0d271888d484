"""Each check of a run to come: in order, to be mended, and not checked with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from raydeploy import preflight
from raydeploy.capacity import Group, Request
from raydeploy.cluster_file import ClusterFile, read_cluster_file
from raydeploy.forecast import PROCESS_BYTES
from raydeploy.object_store import client
from raydeploy.preflight import (
    CHECKS,
    SearchPlan,
    Subject,
    questions,
    run_checks,
    search_requests,
    write_and_remove,
)
from raydeploy.search_actors import SearchActorsConfig
from xmatch.data import files
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash
from xmatch.search.planner import SCAN_BYTES

ROOT = Path(__file__).parents[2]
NOTHING = Subject(str(ROOT), "", "", "", (), None)
SMALL = ClusterFile("c.yaml", "ray up", (Group("gpu", {"CPU": 8, "GPU": 1}, 2, 24 * 2**30),), 2, (), "", ())
GPUS = (Request("workers", 2, {"CPU": 1.0, "GPU": 1.0}),)


def verdict(name: str, subject: Subject) -> tuple[str, str]:
    found = {finding.check: finding for finding in run_checks(subject)}[name]
    return found.verdict, found.text


def bank(folder: Path, width: int = 8, count: int = 5) -> str:
    vectors = np.ones((count, width), np.float32)
    write_vectors(str(folder / "part.arrow"), make_vectors([f"vg/{i}" for i in range(count)], vectors))
    return str(folder)


def test_every_check_asks_a_question_and_answers_with_nothing_given() -> None:
    assert [name for name, _ in questions()] == list(CHECKS)
    assert all(question.endswith("?") for _, question in questions())
    found = {finding.check: finding.verdict for finding in run_checks(NOTHING)}
    answered = {name for name, verdict in found.items() if verdict != "not checked"}
    assert answered == {"upload", "versions", "GPU memory"}
    assert all(finding.text for finding in run_checks(NOTHING))


def test_requests_that_fit_and_requests_that_never_would() -> None:
    subject = NOTHING._replace(cluster=SMALL, requests=GPUS)
    assert verdict("resources", subject) == ("ok", "2 workers with 1 CPU, 1 GPU each: on 2 x gpu")
    large = subject._replace(requests=(Request("workers", 1, {"CPU": 64.0, "GPU": 1.0}),))
    said = verdict("resources", large)
    assert said[0] == "fix"
    assert "nearest is gpu (8 CPU, 1 GPU a node), which is short of CPU (has 8 CPU)" in said[1]
    many = verdict("resources", subject._replace(requests=(Request("workers", 3, {"GPU": 1.0}),)))
    assert many[0] == "fix"
    assert many[1].startswith("1 workers would never start: at most 2 nodes")


def search(**settings) -> SearchPlan:
    return SearchPlan(SearchActorsConfig(**settings), "torch", 2)


def test_search_actors_count_with_the_memory_of_their_shards(tmp_path: Path) -> None:
    group = Group("cpu", {"CPU": 64, "memory": 2 * PROCESS_BYTES + 1e6}, 3)
    cluster = SMALL._replace(groups=(group,), most_nodes=3)
    workers = (Request("workers", 1, {"CPU": 1.0}),)
    subject = NOTHING._replace(cluster=cluster, requests=workers, keys=bank(tmp_path / "k"), search=search(shards=5))
    keys_bytes = 8 * (4 + SCAN_BYTES.get("torch", 4))
    needs = {"CPU": 2.0, "memory": float(PROCESS_BYTES + keys_bytes)}
    assert search_requests(subject) == (Request("search actors", 5, needs),)
    assert verdict("resources", subject)[0] == "ok"
    assert verdict("resources", subject)[1].endswith("on 3 x cpu")
    many = verdict("resources", subject._replace(search=search(shards=5, replicas=2)))
    assert many[0] == "fix"
    assert many[1].startswith("4 search actors would never start")
    wide = subject._replace(keys=bank(tmp_path / "w", width=500_000), search=search(shards=1, replicas=2))
    little = group._replace(resources={"CPU": 64, "memory": PROCESS_BYTES + 1e6})
    large = verdict("resources", wide._replace(cluster=cluster._replace(groups=(little,))))
    assert large[0] == "fix"
    assert "2 search actors with 2 CPU" in large[1]
    assert "short of memory" in large[1]


def test_search_in_the_workers_asks_for_nothing_more(tmp_path: Path) -> None:
    whole = NOTHING._replace(keys=bank(tmp_path / "k"), search=search())
    assert search_requests(whole) == search_requests(NOTHING) == ()
    (on_gpu,) = search_requests(whole._replace(search=search(gpus_per_actor=0.5)))
    assert (on_gpu.actors, on_gpu.needs["GPU"]) == (1, 0.5)
    (unknown,) = search_requests(whole._replace(keys=str(tmp_path / "no"), search=search(shards=3)))
    assert unknown == Request("search actors", 3, {"CPU": 2.0})
    (small,) = search_requests(whole._replace(search=search(memory_gb=2e-7)))
    assert small.actors > 1


@pytest.mark.parametrize("name", ["aws-gpu", "gcp-gpu"])
def test_a_request_that_fits_no_group_of_our_files_is_refused(name: str) -> None:
    subject = NOTHING._replace(cluster=read_cluster_file(str(ROOT / "cluster" / f"{name}.yaml")), requests=GPUS)
    assert verdict("resources", subject)[0] == "ok"
    two = (Request("workers", 1, {"GPU": 2.0}),)
    said = verdict("resources", subject._replace(requests=two))
    assert said[0] == "fix"
    assert "nearest is gpu-spot" in said[1]


def test_hosts_of_unknown_size_are_not_checked() -> None:
    cluster = read_cluster_file(str(ROOT / "cluster" / "local.yaml"))
    said = verdict("resources", NOTHING._replace(cluster=cluster, requests=GPUS))
    assert said[0] == "not checked"
    assert "ray status" in said[1]


def test_a_broken_clusters_file_is_to_be_mended_and_stops_what_rests_on_it() -> None:
    subject = NOTHING._replace(cluster=SMALL._replace(problems=("provider.region is missing",), groups=()))
    assert verdict("cluster file", subject) == ("fix", "c.yaml: provider.region is missing")
    assert verdict("resources", subject._replace(requests=GPUS))[0] == "not checked"


def test_gpu_memory_against_model_and_keys(tmp_path: Path, tiny_model: str, monkeypatch) -> None:
    subject = NOTHING._replace(cluster=SMALL, requests=GPUS, model=tiny_model, keys=bank(tmp_path / "k"))
    assert verdict("GPU memory", subject)[0] == "ok"
    assert verdict("GPU memory", subject._replace(requests=()))[1] == "no GPU is asked for"
    assert verdict("GPU memory", subject._replace(model=""))[0] == "not checked"
    gpu = SMALL.groups[0]
    small = SMALL._replace(groups=(gpu, gpu._replace(name="old", gpu_memory=10**9)))
    said = verdict("GPU memory", subject._replace(cluster=small))
    assert said[0] == "fix"
    assert "1.0 GB of group old" in said[1]
    shared = (Request("workers", 12, {"GPU": 1 / 12}),)
    assert verdict("GPU memory", subject._replace(requests=shared))[0] == "ok"
    assert verdict("GPU memory", subject._replace(requests=(Request("w", 24, {"GPU": 1 / 24}),)))[0] == "fix"
    silent = SMALL._replace(groups=(gpu._replace(gpu_memory=None),))
    assert verdict("GPU memory", subject._replace(cluster=silent))[0] == "not checked"
    monkeypatch.setenv("PATH", "")
    said = verdict("GPU memory", subject._replace(cluster=None))
    assert said[0] == "not checked"
    assert "nvidia-smi is not here" in said[1]


def test_gpu_memory_of_this_machine_is_what_its_program_says(tmp_path: Path, tiny_model: str, monkeypatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    subject = NOTHING._replace(requests=GPUS, model=tiny_model)
    assert preflight.gpu_memories(subject) == {
        "GPU 0 of this machine": 81559 * 2**20,
        "GPU 1 of this machine": 1000 * 2**20,
    }
    assert "GPU 1 of this machine" in verdict("GPU memory", subject)[1]


def test_upload_of_something_else_and_with_mistakes(tmp_path: Path) -> None:
    assert verdict("upload", NOTHING)[0] == "ok"
    (tmp_path / "jobs").mkdir()
    said = verdict("upload", NOTHING._replace(working_dir=str(tmp_path)))
    assert said[0] == "fix"
    assert "root of the project" in said[1]
    (tmp_path / "jobs" / "vokenize_corpus.py").touch()
    (tmp_path / "keys.arrow").write_bytes(b"x" * 1000)
    said = verdict("upload", NOTHING._replace(working_dir=str(tmp_path)))
    assert said[0] == "fix"
    assert "keys.arrow (data; put it on storage that the nodes reach; 1 files" in said[1]


def test_an_upload_over_the_limit_names_its_largest_files(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "vokenize_corpus.py").touch()
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_bytes(b"x" * (ord(name) * 1000))
    monkeypatch.setattr(preflight, "LIMIT_BYTES", 1000)
    said = verdict("upload", NOTHING._replace(working_dir=str(tmp_path)))
    assert said[0] == "fix"
    assert "The largest are d.txt (0.1 MB), c.txt" in said[1]
    assert "a.txt" not in said[1]


def test_storage_is_probed_and_left_as_it_was(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "run"
    assert verdict("storage", NOTHING._replace(output=str(deep)))[0] == "ok"
    assert list(tmp_path.iterdir()) == []
    deep.mkdir(parents=True)
    (deep / "kept").touch()
    assert verdict("storage", NOTHING._replace(output=f"{deep}/"))[0] == "ok"
    assert [path.name for path in deep.iterdir()] == ["kept"]


def test_storage_that_cannot_be_used_is_to_be_mended(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = verdict("storage", NOTHING._replace(output=str(tmp_path / "file" / "run")))
    assert said[0] == "fix"
    assert "cannot write" in said[1]
    said = verdict("storage", NOTHING._replace(output="runs/1"))
    assert said[0] == "fix"
    assert "temporary copy" in said[1]
    assert verdict("storage", NOTHING._replace(output="what://x/y"))[0] == "fix"


@pytest.mark.s3
def test_an_object_store_is_probed_and_left_as_it_was(s3_environment: dict[str, str], become) -> None:
    become(s3_environment)
    store, place = client(), "s3://runs/probed"
    store.put_object(Bucket="runs", Key="probed/there/kept", Body=b"x")
    for output in (f"{place}/new/deep/run", f"{place}/there", f"{place}/there/new/"):
        assert verdict("storage", NOTHING._replace(output=output))[0] == "ok"
    listed = store.list_objects_v2(Bucket="runs", Prefix="probed/")["Contents"]
    assert [item["Key"] for item in listed] == ["probed/there/kept"]
    said = verdict("storage", NOTHING._replace(output="s3://nowhere-at-all/run"))
    assert said[0] == "fix"
    assert "s3://nowhere-at-all/run" in said[1]
    assert "no such bucket" in said[1]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("user", "why"),
    [
        ("reader", "no right"),
        ("nobody", "no right"),
        ("forger", "does not belong to the access key"),
        ("stranger", "does not know the access key"),
    ],
)
def test_a_store_that_refuses_is_to_be_mended(strict_s3: dict[str, dict[str, str]], become, user, why) -> None:
    become(strict_s3[user])
    said = verdict("storage", NOTHING._replace(output="s3://runs/refused"))
    assert said[0] == "fix"
    assert "s3://runs/refused" in said[1]
    assert why in said[1]
    assert strict_s3[user]["AWS_SECRET_ACCESS_KEY"] not in said[1]
    assert strict_s3[user]["AWS_ACCESS_KEY_ID"] not in said[1]


def test_a_store_that_forgets_or_lets_a_second_writer_in_is_noticed(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preflight.files, "read_bytes", lambda path: b"something else")
        with pytest.raises(InputError, match="what was read is something else"):
            write_and_remove(str(tmp_path / "run"))

    def overwrite(path: str, data: bytes) -> bool:
        files.write_bytes(path, data)
        return True

    monkeypatch.setattr(preflight, "put_if_absent", overwrite)
    with pytest.raises(InputError, match="a second writer was let in"):
        write_and_remove(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_model_and_key_bank_are_found_with_their_hashes(tmp_path: Path, tiny_model: str) -> None:
    subject = NOTHING._replace(model=tiny_model, keys=bank(tmp_path / "k"))
    found = verdict("model", subject)
    assert found[0] == "ok"
    assert model_hash(tiny_model)[:12] in found[1]
    assert verdict("key bank", subject)[0] == "ok"
    assert "5 keys of width 8, hash " in verdict("key bank", subject)[1]
    assert verdict("model", NOTHING._replace(model=str(tmp_path / "no")))[0] == "fix"
    assert verdict("key bank", NOTHING._replace(keys=str(tmp_path / "no")))[0] == "fix"
    assert "not compared" in verdict("key bank", subject._replace(model=""))[1]


def test_a_bank_of_another_width_or_of_another_model_is_refused(tmp_path: Path, tiny_model: str) -> None:
    wide = verdict("key bank", NOTHING._replace(model=tiny_model, keys=bank(tmp_path / "wide", width=9)))
    assert wide[0] == "fix"
    assert "width 9" in wide[1]
    assert "width 8" in wide[1]
    keys = bank(tmp_path / "k" / "shards").removesuffix("/shards")
    files.write_json(f"{keys}/identity.json", {"model": model_hash(tiny_model)})
    assert "made by this model" in verdict("key bank", NOTHING._replace(model=tiny_model, keys=keys))[1]
    files.write_json(f"{keys}/identity.json", {"model": "f" * 64})
    other = verdict("key bank", NOTHING._replace(model=tiny_model, keys=keys))
    assert other[0] == "fix"
    assert "another model, ffffffffffff" in other[1]


def test_versions_that_disagree_are_named(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# pins\nray==1.0.0\nunknown==2\n")
    said = verdict("versions", NOTHING._replace(working_dir=str(tmp_path)))
    assert said[0] == "fix"
    assert "constraints.txt says 1.0.0" in said[1]
    (tmp_path / "constraints.txt").unlink()
    assert verdict("versions", NOTHING._replace(working_dir=str(tmp_path)))[0] == "not checked"
    old = SMALL._replace(images=("rayproject/ray:2.9.0-py39-gpu",), ray_version="2.9.0")
    said = verdict("versions", NOTHING._replace(cluster=old))
    assert said[0] == "fix"
    assert "has Ray 2.9.0" in said[1]
    assert "has Python 3.9" in said[1]
    assert "rayVersion 2.9.0" in said[1]
