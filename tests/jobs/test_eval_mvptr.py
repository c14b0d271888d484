"""`jobs/eval_retrieval.py --rerank mvptr`: both steps, weights that are tuned, and a fine pass that is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mvptr_data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from killed_jobs import job, kill_when_done_begins, require_kept, run_job_process
from mvptr_data import caption, image_name

from alignment.mvptr import checkpoints
from alignment.mvptr.losses_config import MvptrLossConfig
from alignment.mvptr.recipe_data import captions_of
from alignment.mvptr.regions.table import RegionTable, write_regions
from alignment.mvptr.tasks.samples import read_samples
from alignment.mvptr.two_step import PoolConfig, coarse_pools
from alignment.mvptr.two_step_scoring import PairScorer, multiply_adds
from alignment.mvptr.two_step_shards import PAIR_SCHEMA, Gallery
from jobs import _two_step, _two_step_plan, eval_retrieval
from xmatch.data.steps import Shard
from xmatch.training.leakage import SEEN_FILE, seen_record, write_seen

COUNT = 12
"""Images of each split."""


def split_file(folder: Path) -> str:
    """Captions of two splits of twelve images, in Karpathy's form."""
    images = [
        {
            "filename": f"{image_name(row)}.jpg",
            "split": "val" if row < COUNT else "test",
            "sentences": [{"raw": f"{caption(row, n)[0]} {row}", "sentid": 2 * row + n} for n in range(2)],
        }
        for row in range(2 * COUNT)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images}))
    return str(folder / "captions.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions, regions, and an MVPTR of drawn weights, whose cross encoder says something."""
    folder = tmp_path_factory.mktemp("two_step")
    split_file(folder)
    config = mvptr_data.train_config(folder, "retrieval", 2 * COUNT, losses=MvptrLossConfig(use=("vsc", "itm")))
    recipe = mvptr_data.recipe_of(folder, config)
    torch.manual_seed(2)
    model = recipe.build_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    recipe.save_model(model, str(folder / "model"))
    return folder


def words(place: Path, split: str = "test") -> list[str]:
    given = ["--model", str(place / "model"), "--rerank", "mvptr", "--two_step.regions", str(place / "regions.arrow")]
    given += ["--two_step.pools.captions_per_image", "14", "--two_step.pools.images_per_caption", "10"]
    given += ["--data.captions", str(place / "captions.json"), "--data.split", split, "--confidence.resamples", "20"]
    return [
        *given,
        "--worst",
        "0",
        "--top_k",
        "24",
        "--two_step.pairs_per_shard",
        "40",
        "--two_step.rows_per_shard",
        "8",
    ]


def run(place: Path, output: Path, *more: str, split: str = "test") -> dict[str, Any]:
    assert eval_retrieval.main([*words(place, split), "--output", str(output), *more]) == 0
    return json.loads((output / "retrieval.json").read_text())


def scorer_of(place: Path, output: Path) -> PairScorer:
    return Gallery(str(place / "model"), str(output / "two_step"), (str(place / "regions.arrow"),)).open()


@pytest.mark.slow
@pytest.mark.ray
def test_two_steps_are_the_brute_force_ranking_within_the_pools(ray_here, place: Path, tmp_path: Path) -> None:
    record = run(place, tmp_path)
    scorer, config = scorer_of(place, tmp_path), checkpoints.read_config(str(place / "model")).model
    captions, images = np.repeat(np.arange(2 * COUNT), COUNT), np.tile(np.arange(COUNT), 2 * COUNT)
    table = scorer.scores(captions, images).reshape(2 * COUNT, COUNT)
    vectors = scorer.image_vectors(np.arange(COUNT)), scorer.text_vectors(np.arange(2 * COUNT))
    pools = coarse_pools(*vectors, PoolConfig(captions_per_image=14, images_per_caption=10))
    names = {"t2i": [image_name(COUNT + row) for row in range(COUNT)]}
    names["i2t"] = [str(2 * COUNT + row) for row in range(2 * COUNT)]
    for way, file, scores in (("t2i", "text", table), ("i2t", "image", table.T)):
        lists = pq.read_table(tmp_path / "lists" / "fine" / f"{file}_predictions.parquet")
        listed = lists.column("item_ids").to_pylist()
        for query, pool in enumerate(pools[way].rows):
            found = [names[way].index(one) for one in listed[query]]
            assert sorted(found) == sorted(pool.tolist())
            ordered = scores[query, found]
            assert (np.diff(ordered) <= 1e-6).all()
        owner = np.arange(2 * COUNT) // 2
        first = [names[way].index(row[0]) for row in listed]
        pairs = enumerate(first)
        hits = [row == owner[q] for q, row in pairs] if way == "t2i" else [owner[row] == q for q, row in pairs]
        assert record["figures"]["fine"][f"{way}_recall_at_1"] == pytest.approx(100 * np.mean(hits))
    best = np.arange(2 * COUNT)[pools["i2t"].rows[:, 0]] // 2  # captions may score alike to the last bits
    assert record["figures"]["coarse"]["i2t_recall_at_1"] == pytest.approx(100 * np.mean(best == np.arange(COUNT)))
    assert abs(record["figures"]["i2t_recall_at_1"] - record["figures"]["coarse"]["i2t_recall_at_1"]) < 101 / COUNT
    found = record["two_step"]
    assert set(found["pool_recall"]) == {"t2i", "i2t"} and all(0 < v <= 100 for v in found["pool_recall"].values())
    assert found["cost"]["multiply_adds_per_pair"] == multiply_adds(config)["pair"] > 0
    assert 240 <= found["cost"]["pairs"] <= 288 and found["coarse_weight"] is None
    fractions = json.loads((tmp_path / "results.eval.json").read_text())
    assert fractions["t2i_retrieval"]["R@1"] * 100 == pytest.approx(record["figures"]["fine"]["t2i_recall_at_1"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())["values"]["cost"]
    assert report["pairs_scored_now"] == found["cost"]["pairs"] and report["seconds_per_pair"] > 0


@pytest.mark.slow
@pytest.mark.ray
def test_weights_are_tuned_on_validation_and_refused_there(
    ray_here, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = run(place, tmp_path / "val", "--two_step.action", "tune", split="val")
    assert (tmp_path / "val" / "tuned.json").exists() and "fused" not in tuned["figures"]
    given = ["--two_step.tuned", str(tmp_path / "val")]
    record = run(place, tmp_path / "test", *given)
    assert set(record["figures"]["fused"]) == set(record["figures"]["fine"])
    assert record["two_step"]["coarse_weight"] == tuned["two_step"]["tuned"]["settings"]["coarse_weight"]
    assert [stage["stage"] for stage in record["two_step"]["stages"]] == ["Coarse", "Fine", "Fused"]
    assert eval_retrieval.main([*words(place, "val"), *given, "--output", str(tmp_path / "again")]) == 2
    assert "were tuned on 12 of the 12 images" in " ".join(capsys.readouterr().err.split())
    assert eval_retrieval.main([*words(place), "--two_step.action", "tune", "--output", str(tmp_path / "no")]) == 2
    assert "tuning on the split 'test' is refused" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--two_step.regions", ""], "needs --two_step.regions"),
        (["--model", "a,b"], "takes one --model"),
        (["--two_step.pools.images_per_caption", "5"], "pools hold at least 10"),
        (["--two_step.tuned", "/nowhere"], "'/nowhere'"),
    ],
)
def test_what_cannot_work_is_refused(
    place: Path, tmp_path: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_retrieval.main([*words(place), *given, "--output", str(tmp_path / "o")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_phrases_of_captions_are_those_of_the_models_vocabulary(place: Path, tmp_path: Path) -> None:
    phrases = mvptr_data.write_pairs(tmp_path / "phrases.parquet", range(4))
    found = _two_step._phrase_ids(phrases, str(place / "model"))
    saved = checkpoints.load(str(place / "model"))
    assert saved.phrases is not None
    assert found["2:1"] == saved.phrases.ids(caption(2, 1)[1]) != []
    assert _two_step._phrase_ids("", str(place / "model")) == {}


def test_a_plan_says_what_the_second_step_costs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_retrieval.main([*words(place), "--output", str(tmp_path / "o"), "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "at most 408 pairs of" in said  # 12 x 14 + 24 x 10
    assert "for 408 pairs" in said and "not measured" not in said
    assert not (tmp_path / "o").exists()


def test_a_plan_refuses_regions_of_another_width(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [image._replace(features=image.features[:, :-1]) for image in RegionTable(str(place / "regions.arrow"))]
    write_regions(str(tmp_path / "regions.arrow"), wrong)
    given = [*words(place), "--two_step.regions", str(tmp_path / "regions.arrow"), "--output", str(tmp_path / "o")]
    assert eval_retrieval.main(given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"regions have {wrong[0].features.shape[1]} numbers, but the model reads" in said
    assert "regions.arrow', row 0" in said and not (tmp_path / "o").exists()


@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 40))
def test_pairs_drawn_for_a_forecast_are_of_the_split(captions: int, images: int, each: int) -> None:
    pairs = captions * each
    reader = _two_step_plan.DrawnPairs(pairs, captions, images)
    cut = pairs // 2
    table = pa.concat_tables([reader(Shard("a", "", 0, cut)), reader(Shard("b", "", cut, pairs))])
    found = table.column("caption").to_numpy()
    assert table.schema == PAIR_SCHEMA and np.array_equal(np.repeat(np.arange(captions), each), found)
    assert set(table.column("image").to_pylist()) <= set(range(images))


def test_a_model_that_has_seen_the_split_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = read_samples(str(place / "train.arrow"))
    write_seen([seen_record(captions_of(samples), role="train")], str(place / "model" / SEEN_FILE))
    try:
        assert eval_retrieval.main([*words(place), "--output", str(tmp_path / "o"), "--plan"]) == 2
        assert "has seen 12 of the 12 images" in capsys.readouterr().err
    finally:
        (place / "model" / SEEN_FILE).unlink()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_fine_step_goes_on_where_it_was_and_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    command = job("eval_retrieval", [*words(place), "--two_step.pairs_per_shard", "4", "--output"])
    killed = tmp_path / "killed"
    kept = kill_when_done_begins([*command, str(killed)], killed, "two_step/fine/completions/*.json")
    assert not (killed / "retrieval.json").exists(), "killed in the middle of the fine step"
    for name in ("killed", "whole"):
        run_job_process([*command, str(tmp_path / name)])
    require_kept(kept)
    assert bytes_of(killed) == bytes_of(tmp_path / "whole")
    now = json.loads((killed / "run" / "report.json").read_text())["values"]["cost"]["pairs_scored_now"]
    assert 0 < now < json.loads((killed / "retrieval.json").read_text())["two_step"]["cost"]["pairs"]


def bytes_of(folder: Path) -> dict[str, Any]:
    """Content of all that a run made, but for its own place and its log."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith("run/") and "/run/" not in name and name != "retrieval.json":
            found[name] = path.read_bytes()
    record = json.loads((folder / "retrieval.json").read_text())
    return found | {"record": {k: v for k, v in record.items() if not k.startswith("config")}}
