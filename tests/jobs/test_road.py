"""The road, each job through its own main, on tiny data and real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from killed_jobs import job, kill_when_done_begins, own_environment, require_kept, run_job_process
from small_models import CAPTIONS, karpathy_json, make_images
from toy_steps import tree

from jobs import convert, embed, eval_retrieval, tokenize_corpus, train_xmatch, vokenize_corpus
from jobs.__main__ import job_lines
from raydeploy import search_actors
from vokenize.tokens import plan_token_shards, read_token_shard
from vokenize.voken_files import check_vokens, read_voken_shard

pytestmark = pytest.mark.ray
LINES = [*CAPTIONS, "", "hello\tworld\t!", "x " * 300, "the dog"] * 4


def write_corpus(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("".join(f"{line}\n" for line in LINES))
    return str(folder / "corpus.txt")


def road(folder: Path, model: str, images: str) -> dict[str, list[str]]:
    """Arguments of the jobs up to the vokens."""
    corpus = write_corpus(folder)
    keys, tokens, vokens = (str(folder / name) for name in ("keys", "tokens", "vokens"))
    return {
        "embed": ["--side", "image", "--model", model, "--images.root", images, "--images.set_name", "vg_toy"]
        + ["--rows_per_shard", "5", "--output", keys],
        "tokenize_corpus": [
            "--corpus.path",
            corpus,
            "--tokenizer",
            model,
            "--lines_per_shard",
            "6",
            "--output",
            tokens,
        ],
        "vokenize_corpus": ["--tokens", tokens, "--keys", keys, "--model", model, "--output", vokens]
        + ["--vokenize.level", "both", "--vokenize.top_k", "2", "--vokenize.window", "32"],
    }


@pytest.fixture(scope="module")
def walked(ray_here, tmp_path_factory, tiny_model: str, image_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("road")
    arguments = road(folder, tiny_model, image_folder)
    for step in (embed, tokenize_corpus, vokenize_corpus):
        assert step.main(arguments[step.__name__.split(".")[-1]]) == 0
    return folder


def test_lines_out_are_lines_in_and_vokens_are_as_many_as_tokens(walked: Path) -> None:
    lines = 0
    for shard in plan_token_shards(str(walked / "tokens")):
        tokens = read_token_shard(shard)
        vokens = read_voken_shard(str(walked / "vokens" / "shards" / f"{shard.id}.parquet"))
        check_vokens(tokens, vokens, shard.id)
        assert tokens.column("text").to_pylist() == LINES[lines : lines + len(tokens)]
        lines += len(tokens)
    assert lines == len(LINES)
    manifest = json.loads((walked / "vokens" / "manifest.json").read_text())
    assert manifest["counts"]["lines"] == len(LINES)
    assert manifest["counts"]["tokens"] == manifest["counts"]["vokens"]


def test_a_forecast_stands_beside_the_fact(walked: Path, capsys) -> None:
    report = json.loads((walked / "vokens" / "run" / "report.json").read_text())
    assert report["forecast"]["units"] == report["fact"]["units"] == report["values"]["counts"]["tokens"]
    assert report["forecast"]["seconds"] > 0
    assert set(report["forecast"]["stages"]) == {"encoder", "search"}
    assert set(report["fact"]["stages"]) > {"encoder", "search"}
    assert report["fact"]["memory_bytes"] > 10**8
    assert report["values"]["search"]["queries"] > 0


@pytest.mark.slow
def test_shards_and_replicas_of_the_key_bank_change_nothing(
    walked: Path, ray_here, tmp_path: Path, tiny_model: str, image_folder: str, monkeypatch, capsys
) -> None:
    arguments = road(tmp_path, tiny_model, image_folder)["vokenize_corpus"]
    places = ["--tokens", str(walked / "tokens"), "--keys", str(walked / "keys"), "--ray.calibration_s", "0"]
    monkeypatch.setattr(search_actors, "cpus_of", lambda threads: 0)  # the tests' Ray has few
    layout = ["--search.shards", "3", "--search.replicas", "2"]
    assert vokenize_corpus.main([*arguments, *places, *layout]) == 0
    shown = capsys.readouterr().out
    assert "3 shards, each in 2 actors" in shown
    assert "shard 2, replica 1" in shown
    one, other = tree(walked / "vokens"), tree(tmp_path / "vokens")
    assert {k: v for k, v in one.items() if k.startswith("shards/")} == {
        k: v for k, v in other.items() if k.startswith("shards/")
    }
    assert one["manifest.json"] == other["manifest.json"]


def test_the_page_is_self_contained_and_shows_the_corpus(walked: Path) -> None:
    page = (walked / "vokens" / "page.html").read_text()
    assert "data:image/webp;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "sat" in page


def test_a_rerun_does_nothing_and_changes_nothing(walked: Path, tiny_model: str, image_folder: str) -> None:
    before = tree(str(walked / "vokens"))
    assert vokenize_corpus.main(road(walked, tiny_model, image_folder)["vokenize_corpus"]) == 0
    assert tree(str(walked / "vokens")).keys() == before.keys()
    changed = [name for name, data in tree(str(walked / "vokens")).items() if before[name] != data]
    assert changed in ([], ["page.html"])


def test_other_settings_are_refused_in_the_same_folder(
    walked: Path, tiny_model: str, image_folder: str, capsys
) -> None:
    arguments = road(walked, tiny_model, image_folder)["vokenize_corpus"]
    assert vokenize_corpus.main([*arguments, "--vokenize.top_k", "3"]) == 2
    assert "another vokenize" in capsys.readouterr().err


def test_the_originals_files_are_exported(walked: Path) -> None:
    tokens, vokens, keys = (str(walked / name) for name in ("tokens", "vokens", "keys"))
    out = str(walked / "originals")
    common = ["--output", out, "--corpus_name", "train.pkl.txt"]
    assert convert.main(["--what", "export_tokens", "--tokens", tokens, *common]) == 0
    assert convert.main(["--what", "export_keys", "--keys", keys, *common]) == 0
    for what in ("export_vokens", "export_maria"):
        places = ["--tokens", tokens, "--vokens", vokens, "--keys", keys]
        assert (
            convert.main(["--what", what, *places, "--output", f"{out}/{what}", "--corpus_name", "train.pkl.txt"]) == 0
        )
    token_lines = Path(out, "train.pkl.txt").read_text().splitlines()
    voken_lines = Path(out, "export_vokens", "train.pkl.txt.vg_toy.12").read_text().splitlines()
    assert [len(line.split()) for line in token_lines] == [len(line.split()) for line in voken_lines]
    dropped = json.loads(Path(out, "train.pkl.txt.dropped.json").read_text())
    assert len(token_lines) + len(dropped) == len(LINES)
    maria = Path(out, "export_maria", "train.pkl.txt.vg_toy.12").read_text().split("\n")[:-1]
    assert [bool(line) for line in maria] == [bool(line.strip()) for line in LINES]
    assert len(maria[0].split("\t")) == 2
    assert convert.main(["--what", "import_keys", "--keys", out, "--image_set", "vg_toy", "--output", f"{out}/k"]) == 0
    assert convert.main(["--what", "export_maria", "--output", out]) == 2


def test_a_broken_image_is_quarantined_and_counted(ray_here, tmp_path: Path, tiny_model: str) -> None:
    images = Path(make_images(tmp_path / "images", 4))
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    arguments = road(tmp_path, tiny_model, str(images))["embed"]
    assert embed.main(arguments) == 0
    manifest = json.loads((tmp_path / "keys" / "manifest.json").read_text())
    assert manifest["counts"] == {"images": 3, "quarantined": 1}
    assert (tmp_path / "keys" / "quarantine" / "part-00000.parquet").exists()


def test_texts_are_embedded(ray_here, tmp_path: Path, tiny_model: str) -> None:
    corpus = write_corpus(tmp_path)
    arguments = ["--side", "text", "--model", tiny_model, "--texts.path", corpus, "--output", str(tmp_path / "t")]
    assert embed.main(arguments) == 0
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["counts"] == {"texts": len(LINES)}


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (embed, ["--side", "image", "--images.root", "/no/such"], "/no/such"),
        (embed, ["--side", "text"], "--texts.path"),
        (tokenize_corpus, ["--tokenizer", "t"], "--corpus.path"),
        (vokenize_corpus, ["--tokens", "/no/such", "--keys", "k"], "/no/such"),
        (eval_retrieval, [], "data.captions"),
        (train_xmatch, [], "train.captions"),
    ],
)
def test_bad_input_is_one_paragraph(tmp_path: Path, tiny_model: str, capsys, job, arguments, message) -> None:
    model = [] if job in (tokenize_corpus, train_xmatch) else ["--model", tiny_model]
    assert job.main([*arguments, *model, "--output", str(tmp_path / "o")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "o" / "shards").exists()


def test_retrieval_is_measured(ray_here, tmp_path: Path, tiny_model: str, image_folder: str, capsys) -> None:
    captions = karpathy_json(tmp_path / "c.json", {"test": [f"{name}.jpg" for name in "abcdef"]})
    data = ["--data.captions", captions, "--data.images", image_folder]
    assert eval_retrieval.main(["--model", tiny_model, *data, "--output", str(tmp_path / "e")]) == 0
    record = json.loads((tmp_path / "e" / "retrieval.json").read_text())
    assert (record["images"], record["captions"]) == (6, 12)
    assert (tmp_path / "e" / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert "rsum" in capsys.readouterr().out


def test_jobs_are_listed_with_a_line_each() -> None:
    lines = dict(job_lines())
    assert {"embed", "tokenize_corpus", "vokenize_corpus", "train_xmatch", "eval_retrieval", "convert"} <= set(lines)
    assert all(lines.values())


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(walked: Path, tmp_path: Path, tiny_model: str, image_folder: str) -> None:
    arguments = road(walked, tiny_model, image_folder)["vokenize_corpus"]
    arguments[arguments.index("--output") + 1] = str(tmp_path / "v")
    command = job("vokenize_corpus", arguments)
    kept = kill_when_done_begins(command, tmp_path / "v", "completions/*.json")
    run_job_process(command)
    require_kept(kept)
    here, there = tree(str(tmp_path / "v")), tree(str(walked / "vokens"))
    here.pop("page.html"), there.pop("page.html")
    assert here == there


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for other in found:
        found += [child for child, parent in parents.items() if parent == other]
    return found[1:]


def actor_of(pid: int) -> int | None:
    """The process of the driver's actor that vokenizes, once there is one."""
    for child in descendants(pid):
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::MapWorker"):
                return child
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


@pytest.mark.slow
def test_a_killed_actor_changes_nothing(walked: Path, tmp_path: Path, tiny_model: str, image_folder: str) -> None:
    arguments = road(walked, tiny_model, image_folder)["vokenize_corpus"]
    arguments[arguments.index("--output") + 1] = str(tmp_path / "v")
    process = subprocess.Popen(job("vokenize_corpus", arguments), env=own_environment())
    victim = None
    while victim is None and process.poll() is None:
        time.sleep(0.02)
        victim = actor_of(process.pid)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert process.wait(240) == 0
    here, there = tree(str(tmp_path / "v")), tree(str(walked / "vokens"))
    here.pop("page.html"), there.pop("page.html")
    assert here == there
