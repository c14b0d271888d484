"""The job that checks a run: from the settings of the job to come, or from arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs import embed, preflight, train_xmatch, vokenize_corpus
from jobs.preflight import PreflightConfig, read_job, requests_of, search_of
from raydeploy.capacity import Request
from raydeploy.preflight import SearchPlan
from raydeploy.search_actors import SearchActorsConfig
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError

ROOT = Path(__file__).parents[2]
AWS = str(ROOT / "cluster" / "aws-gpu.yaml")


@pytest.fixture
def run_settings(tmp_path: Path, tiny_model: str, capsys) -> Path:
    """Settings of a vokenization run, as the job prints them, on a bank that is there."""
    vectors = np.ones((5, 8), np.float32)
    write_vectors(str(tmp_path / "keys" / "part.arrow"), make_vectors([f"vg/{i}" for i in range(5)], vectors))
    places = {"tokens": "tokens", "keys": "keys", "output": "vokens"}
    arguments = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
    wide = ["--ray.actors", "4", "--ray.cpus_per_actor", "4", "--ray.gpus_per_actor", "1", "--search.shards", "2"]
    assert vokenize_corpus.main([*arguments, "--model", tiny_model, *wide, "--print-config"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    return path


def test_a_run_in_order_is_let_through_with_a_row_for_each_check(run_settings: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert preflight.main(["--job", str(run_settings), "--cluster", AWS, "--working_dir", str(ROOT)]) == 0
    said = capsys.readouterr()
    assert "4 workers with 4 CPU, 1 GPU each; 2 search actors with 1 CPU, 1 GB memory each" in said.out
    assert said.out.count(" ok ") == 8
    assert "fix" not in said.out
    assert not said.err
    assert sorted(path.name for path in run_settings.parent.iterdir()) == ["keys", "run.yaml"]


def test_a_run_that_fits_no_group_is_refused_naming_the_nearest(run_settings: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    arguments = ["--job", str(run_settings), "--cluster", AWS, "--working_dir", str(ROOT)]
    assert preflight.main([*arguments, "--gpus_per_actor", "8"]) == 2
    said = capsys.readouterr()
    assert "The nearest is gpu-spot (8 CPU, 1 GPU, 22 GB memory a node)" in said.out
    assert said.err == "to be mended before the run: resources\n"
    assert preflight.main([*arguments, "--actors", "11"]) == 2
    assert "1 workers would never start" in capsys.readouterr().out


def test_arguments_alone_suffice(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    arguments = ["--cluster", AWS, "--working_dir", str(ROOT), "--actors", "3", "--memory_gb_per_actor", "20"]
    assert preflight.main(arguments) == 0
    assert "3 workers with 20 GB memory each: on 3 x cpu-spot" in capsys.readouterr().out.replace("1 CPU, ", "")
    assert preflight.main([*arguments, "--memory_gb_per_actor", "23"]) == 2


def settings(job, capsys, *arguments: str) -> dict:
    assert job.main([*arguments, "--print-config"]) == 0
    path = Path("settings.yaml")
    path.write_text(capsys.readouterr().out)
    return read_job(str(path))


def test_requests_are_read_from_the_settings_of_every_kind_of_job(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    none = PreflightConfig()
    images = ["--side", "image", "--model", "m", "--images.root", "r", "--output", "o", "--ray.gpus_per_actor", "0.5"]
    embedding = settings(embed, capsys, *images, "--ray.actors", "6")
    assert requests_of(embedding, none) == [Request("workers", 6, {"CPU": 1.0, "GPU": 0.5})]
    assert embedding["model"] == "m"
    splits = ["--train.captions", "c", "--train.images", "i", "--valid.captions", "c", "--valid.images", "i"]
    wide = ["--trainer.workers", "4", "--trainer.use_gpu", "true", "--trainer.cpus_per_worker", "6"]
    training = settings(train_xmatch, capsys, *splits, *wide, "--output", "o")
    assert requests_of(training, none) == [Request("training workers", 4, {"CPU": 6.0, "GPU": 1.0})]
    elastic = settings(train_xmatch, capsys, *splits, *wide, "--trainer.min_workers", "2", "--output", "o")
    assert requests_of(elastic, none) == [Request("training workers", 2, {"CPU": 6.0, "GPU": 1.0})]  # enough to start
    places = ["--tokens", "t", "--keys", "k", "--model", "m", "--output", "o", "--vokenize.threads", "4"]
    plain = settings(vokenize_corpus, capsys, *places)
    assert requests_of(plain, none) == [Request("workers", 1, {"CPU": 1.0})]
    cut = settings(vokenize_corpus, capsys, *places, "--search.shards", "3", "--search.replicas", "2")
    assert requests_of(cut, none) == [Request("workers", 1, {"CPU": 1.0})]
    assert search_of(cut) == SearchPlan(SearchActorsConfig(shards=3, replicas=2), "auto", 4.0)
    assert search_of(training) is None
    with pytest.raises(InputError, match="Print them again"):
        search_of({"search": {"parts": 3}})
    assert requests_of({}, none) == []


def test_arguments_go_before_the_jobs_file() -> None:
    job = {"ray": {"actors": 2, "cpus_per_actor": 3, "gpus_per_actor": 1}}
    config = PreflightConfig(actors=5, gpus_per_actor=0, memory_gb_per_actor=4)
    assert requests_of(job, config) == [Request("workers", 5, {"CPU": 3.0, "memory": 4e9})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--job", "nowhere.yaml"], "nowhere.yaml"),
        (["--cluster", "nowhere.yaml"], "nowhere.yaml"),
        (["--cluster", str(ROOT / "setup.cfg")], "no YAML"),
        (["--actors", "0"], "at least 1"),
        (["--actor", "3"], "'actors'"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: list[str], said: str, capsys) -> None:
    assert preflight.main(arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors


def test_a_jobs_file_that_is_none_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "run.yaml").write_text("- 1\n")
    assert preflight.main(["--job", str(tmp_path / "run.yaml")]) == 2
    assert "--print-config" in capsys.readouterr().err


def test_the_plan_asks_every_question(capsys) -> None:
    assert preflight.main(["--plan"]) == 0
    assert capsys.readouterr().out.count("?\n") == 8
