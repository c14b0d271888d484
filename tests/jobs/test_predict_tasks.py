"""`jobs/predict_tasks.py`: each task's predictions, figures beside the published, and the files of the challenges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mvptr_data
import numpy as np
import pytest
import torch
from killed_jobs import job, kill_when_done_begins, require_kept, run_job_process
from mvptr_data import recipe_of, train_config
from toy_steps import tree

from alignment.mvptr.heads import HeadConfig
from alignment.mvptr.regions.table import RegionTable, write_regions
from alignment.mvptr.tasks import entailment, refexp, vqa
from jobs import predict_tasks

pytestmark = pytest.mark.ray


def saved(folder: Path, task: str, count: int = 12, **changes: Any) -> tuple[dict[str, float], list[str]]:
    """A model of drawn weights: its figures as training sees them, and the arguments to predict the same data."""
    config = train_config(folder, task, count, **changes)
    recipe = recipe_of(folder, config)
    torch.manual_seed(1)
    model = recipe.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    recipe.save_model(model, str(folder / "model"))
    split = config.valid
    given = ["--model", str(folder / "model"), "--data", split.data, "--regions", config.regions]
    given += ["--phrases", split.phrases] if split.phrases else []
    given += ["--output", str(folder / "out"), "--samples_per_shard", "5"]
    return recipe.evaluate(model.eval()), given


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "figures.json").read_text())


@pytest.mark.slow
def test_questions(ray_here, tmp_path: Path) -> None:
    expected, given = saved(tmp_path, "vqa")
    assert predict_tasks.main([*given, "--split", "test-dev"]) == 0
    found = figures(tmp_path)
    assert found["figures"] == pytest.approx(expected)
    assert found["published"]["accuracy"] == 76.16
    results = vqa.read_results(str(tmp_path / "out" / vqa.RESULTS_FILE))
    assert [identity for identity, _ in results] == [str(row) for row in range(12)]
    assert {answer for _, answer in results} <= set(mvptr_data.ANSWERS)
    test = [*given[:-4], "--output", str(tmp_path / "test"), "--labelled", "false"]
    assert predict_tasks.main(test) == 0
    assert vqa.read_results(str(tmp_path / "test" / vqa.RESULTS_FILE)) == results
    assert json.loads((tmp_path / "test" / "figures.json").read_text())["figures"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("vqa_from", ["pooled", "pooled_and_sides"])
def test_questions_by_other_heads(ray_here, tmp_path: Path, vqa_from: str) -> None:
    expected, given = saved(tmp_path, "vqa", head=HeadConfig(vqa_from=vqa_from, classifier="mlp"))
    assert predict_tasks.main([*given, "--split", "test-dev"]) == 0
    assert figures(tmp_path)["figures"] == pytest.approx(expected)


def test_sentences(ray_here, tmp_path: Path) -> None:
    expected, given = saved(tmp_path, "snli_ve")
    assert predict_tasks.main([*given, "--split", "val"]) == 0
    assert figures(tmp_path)["figures"] == pytest.approx(expected)
    assert figures(tmp_path)["published"] == {"accuracy": 80.30}
    rows = entailment.read_results(str(tmp_path / "out" / entailment.RESULTS_FILE))
    assert len(rows) == 12 and rows[0][0] == "0.jpg#0r1"


@pytest.mark.slow
def test_expressions_with_and_without_given_detections(ray_here, tmp_path: Path) -> None:
    expected, given = saved(tmp_path, "refexp", head=HeadConfig(region_score="linear"))
    assert predict_tasks.main([*given, "--split", "val"]) == 0
    assert figures(tmp_path)["figures"] == pytest.approx(expected)
    boxes = refexp.read_results(str(tmp_path / "out" / refexp.RESULTS_FILE))
    assert len(boxes) == 12
    detections = [
        {"image_id": int(mvptr_data.image_name(row)), "box": [x1, y1, x2 - x1, y2 - y1]}
        for row in range(12)
        for x1, y1, x2, y2 in mvptr_data.regions_of(row, 4).boxes.astype(float).tolist()
    ]
    (tmp_path / "dets.json").write_text(json.dumps(detections))
    more = ["--split", "val", "--detections", str(tmp_path / "dets.json"), "--output", str(tmp_path / "dets")]
    assert predict_tasks.main([*given[:-4], *more]) == 0
    record = json.loads((tmp_path / "dets" / "figures.json").read_text())["figures"]
    assert record["accuracy_detections_best_region"] == pytest.approx(expected["accuracy"])
    given_boxes = refexp.read_results(str(tmp_path / "dets" / refexp.RESULTS_FILE))
    np.testing.assert_allclose([row[1] for row in given_boxes], [row[1] for row in boxes], atol=1e-3)


def test_what_cannot_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_config(tmp_path, "pretrain")
    recipe = recipe_of(tmp_path, dataclasses.replace(config))
    recipe.save_model(recipe.build_model(), str(tmp_path / "model"))
    given = ["--model", str(tmp_path / "model"), "--data", "x", "--regions", config.regions]
    assert predict_tasks.main([*given, "--output", str(tmp_path / "o"), "--plan"]) == 2
    assert "is an MVPTR for pretraining; expected vqa, snli_ve or refexp" in " ".join(capsys.readouterr().err.split())


def test_a_plan_measures_and_refuses_regions_of_another_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, given = saved(tmp_path, "vqa")
    given[-1] = "16"
    assert predict_tasks.main([*given, "--plan"]) == 0
    assert "for 12 samples" in capsys.readouterr().out
    places = tmp_path / "regions.arrow"
    images = [image._replace(features=image.features[:, :-1]) for image in RegionTable(str(places))]
    write_regions(str(places), images)
    assert predict_tasks.main([*given, "--plan"]) == 2
    assert "but the model reads" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_prediction_goes_on_where_it_was(tmp_path: Path) -> None:
    _, given = saved(tmp_path, "snli_ve", 60)
    given[-1], out = "1", given.index("--output") + 1
    given[out] = str(tmp_path / "killed")
    command = job("predict_tasks", given)
    kept = kill_when_done_begins(command, tmp_path / "killed", "predictions/completions/*.json")
    run_job_process(command)
    require_kept(kept)
    given[out] = str(tmp_path / "whole")
    run_job_process(job("predict_tasks", given))
    found = [made(tmp_path / name) for name in ("killed", "whole")]
    assert found[0] == found[1] and len(found[0]) > 60


def made(folder: Path) -> dict[str, bytes]:
    """Predictions and what is handed in, without the record of how they came about."""
    parts = ("predictions", entailment.RESULTS_FILE)
    return {name: data for name, data in tree(str(folder)).items() if name.startswith(parts) and "/run/" not in name}
