"""The road from and to an object store: a real S3 server in a process of its own, each job a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from small_gallery import small_embeddings, small_gallery, write_gallery
from small_models import golden, make_images, tiny_vocabulary
from small_vokens import write_bank, write_tokens, write_vokens
from toy_steps import tree

from jobs import eval_retrieval, eval_vokens, key_bank, status
from xmatch.data import files

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
SECRET = "a-secret-of-the-tests"


def job(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in environment.items() if not k.startswith("RAY_")}
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300)


def run(environment: dict[str, str], name: str, *arguments: str) -> str:
    done = job(environment, name, "--ray.calibration_s", "0", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stdout


def road(environment: dict[str, str], base: str, model: str, images: str, corpus: str) -> None:
    run(environment, "embed", "--side", "image", "--model", model, "--images.root", images, "--images.set_name", "toy",
        "--rows_per_shard", "5", "--output", f"{base}/keys")  # fmt: skip
    run(environment, "tokenize_corpus", "--corpus.path", corpus, "--tokenizer", model, "--lines_per_shard", "2",
        "--output", f"{base}/tokens")  # fmt: skip
    run(environment, "vokenize_corpus", "--tokens", f"{base}/tokens", "--keys", f"{base}/keys", "--model", model,
        "--page.write", "false", "--output", f"{base}/vokens")  # fmt: skip


def small_inputs(folder: Path) -> str:
    """Tokens, vokens, two key banks, captions and embeddings; their folder."""
    entries = golden("evaluation")["data"]
    captions = [caption for entry in entries for caption in entry["sentf"]["mscoco"]]
    tiny_vocabulary().save_pretrained(str(folder / "tokenizer"))
    (folder / "captions.json").write_text(json.dumps(entries))
    shards = write_tokens(folder / "tokens", tiny_vocabulary(), captions, 5)
    ids = [f"coco_minival/{image}" for image in golden("evaluation")["ids"]]
    bank = write_bank(folder / "keys", ids)
    write_bank(folder / "more", [f"vg_more/{number}" for number in range(len(ids))])
    write_vokens(folder / "vokens", folder / "tokens", shards, keys_hash=bank, k=5, keys=len(ids))
    write_gallery(folder, small_gallery())
    for name, rows in zip(("images", "texts"), small_embeddings(), strict=True):
        np.save(folder / f"{name}.npy", rows)
    return str(folder)


def store(environment: dict[str, str]) -> pafs.S3FileSystem:
    scheme, _, host = environment["AWS_ENDPOINT_URL"].partition("://")
    return pafs.S3FileSystem(
        access_key="test", secret_key=SECRET, region="us-east-1", endpoint_override=host, scheme=scheme
    )


def objects(environment: dict[str, str], folder: str) -> dict[str, bytes]:
    """Every object of a run's output but those of run/, by relative path."""
    filesystem, found = store(environment), {}
    for info in filesystem.get_file_info(pafs.FileSelector(folder, recursive=True)):
        relative = info.path.removeprefix(f"{folder}/")
        if info.type == pafs.FileType.File and not relative.startswith("run/"):
            with filesystem.open_input_stream(info.path) as stream:
                found[relative] = stream.read()
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_model: str) -> tuple[Path, str, str, str]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "corpus.txt").write_text("the cat sat\n\na dog ran\nhello world\nit is big\n")
    return folder, tiny_model, make_images(folder / "images"), str(folder / "corpus.txt")


def test_the_road_gives_the_same_in_a_store_and_goes_on_there(s3_environment, places) -> None:
    folder, model, images, corpus = places
    road(s3_environment, str(folder), model, images, corpus)
    road(s3_environment, "s3://runs/road", model, images, corpus)
    for name in ("keys", "tokens", "vokens"):
        local, remote = tree(str(folder / name)), objects(s3_environment, f"runs/road/{name}")
        local = {path: data for path, data in local.items() if not path.startswith("cache/")}
        staged = {path.split("/")[2]: data for path, data in remote.items() if path.startswith("models/")}
        weights = Path(model, "model.safetensors").read_bytes()
        assert staged.get("model.safetensors") == (None if name == "tokens" else weights)
        assert {"staged.json", "tokenizer.json"} <= set(staged)
        remote = {path: data for path, data in remote.items() if not path.startswith("models/")}
        assert {p: d for p, d in remote.items() if p.startswith("shards/")} == {
            p: d for p, d in local.items() if p.startswith("shards/")
        }
        assert set(remote) == set(local)
    before = objects(s3_environment, "runs/road/vokens")
    filesystem = store(s3_environment)
    for lost in ("completions/part-00001.json", "manifest.json"):  # as if the run had been killed
        filesystem.delete_file(f"runs/road/vokens/{lost}")
    said = run(s3_environment, "vokenize_corpus", "--tokens", "s3://runs/road/tokens", "--keys", "s3://runs/road/keys",
        "--model", model, "--page.write", "false", "--output", "s3://runs/road/vokens")  # fmt: skip
    assert "2 of 5 lines" in said or "vokens" in said
    assert objects(s3_environment, "runs/road/vokens") == before
    state = job(s3_environment, "status", "s3://runs/road/vokens", "--json")
    assert json.loads(state.stdout)["state"] == "finished", state.stderr


def test_what_is_made_of_vokens_is_the_same_from_and_in_a_store(s3_environment, become, tmp_path: Path, capfd) -> None:
    become(s3_environment)
    inputs = small_inputs(tmp_path / "in")
    files.copy_folder(inputs, "s3://runs/made/in")
    for base, output in ((inputs, str(tmp_path / "out")), ("s3://runs/made/in", "s3://runs/made/out")):
        voked = ["--tokens", f"{base}/tokens", "--vokens", f"{base}/vokens"]
        truth = ["--captions.path", f"{base}/captions.json", "--tokenizer", f"{base}/tokenizer"]
        assert eval_vokens.main([*voked, "--keys", f"{base}/keys", *truth, "--output", f"{output}/measures"]) == 0
        for action, more in (("report", ["--threshold", "0.9"]), ("merge", []), ("append", ["--add", f"{base}/more"])):
            words = ["--action", action, "--bank", f"{base}/keys", "--output", f"{output}/{action}", *more]
            assert key_bank.main(words) == 0, capfd.readouterr().err
        cache = ["--cache", str(tmp_path / "cache"), "--bank", f"{base}/keys", "--output", f"{output}/pack"]
        assert key_bank.main(["--action", "pack", *cache]) == 0
        ready = ["--embeddings.images", f"{base}/images.npy", "--embeddings.texts", f"{base}/texts.npy"]
        split = ["--data.captions", f"{base}/dataset.json", "--confidence.resamples", "5"]
        assert eval_retrieval.main([*split, *ready, "--output", f"{output}/retrieval"]) == 0
        run(s3_environment, "revokenize", *voked, "--tokenizer", f"{base}/tokenizer", "--output", f"{output}/moved")
        assert status.main([f"{output}/retrieval"]) == 0
    assert SECRET not in "".join(capfd.readouterr())
    for name in (
        "in/keys",
        "out/measures",
        "out/merge",
        "out/append",
        "out/retrieval",
        "out/moved/tokens",
        "out/moved/vokens",
    ):
        here, there = tree(str(tmp_path / name)), objects(s3_environment, f"runs/made/{name}")
        here, there = ({p: d for p, d in found.items() if not p.startswith("cache/")} for found in (here, there))
        assert set(there) == set(here)
        named = {"measures.json", "retrieval.json"}  # they say where the inputs were
        same = [path for path in there if not path.endswith((*named, "identity.json", "manifest.json"))]
        assert [path for path in same if there[path] != here[path] and "run/" not in path] == []
        for path in named & set(there):
            assert json.loads(there[path]).get("figures") == json.loads(here[path]).get("figures")


def test_no_object_of_a_run_holds_a_credential(s3_environment, places) -> None:
    folder, model, _, corpus = places
    run(s3_environment, "tokenize_corpus", "--corpus.path", corpus, "--tokenizer", model, "--output", "s3://runs/log")
    filesystem, found = store(s3_environment), []
    for info in filesystem.get_file_info(pafs.FileSelector("runs/log", recursive=True)):
        if info.type == pafs.FileType.File:
            found.append(info.base_name)
            with filesystem.open_input_stream(info.path) as stream:
                assert SECRET.encode() not in stream.read(), info.path
    assert {"log.jsonl", "config.yaml", "report.json", "manifest.json", "identity.json"} <= set(found)


@pytest.mark.parametrize(
    ("changes", "output", "message"),
    [
        ({}, "s3://no-such-bucket/tokens", "no-such-bucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://runs/nobody", "s3://runs/nobody"),
    ],
)
def test_a_store_that_cannot_be_written_is_one_paragraph(s3_environment, places, changes, output, message) -> None:
    _, model, _, corpus = places
    arguments = ["--corpus.path", corpus, "--tokenizer", model, "--output", output]
    done = job({**s3_environment, **changes}, "tokenize_corpus", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
