"""The re-ranking job: applied, tuned, refused; from vectors and from lists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_reranking import make_world

from alignment.entities.entity_tables import CaptionEntities, entity_rows, entity_table, write_entities
from alignment.rerank.candidates import read_predictions
from jobs import rerank
from xmatch.data.vectors import make_vectors, matrix, read_vectors, write_vectors

FAST = ["--confidence.resamples", "20"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def words(world: Path, output: Path, split: str, *more: str) -> list[str]:
    data = ["--data.captions", f"{world}/dataset.json", "--data.images", str(world), "--data.split", split]
    vectors = ["--embeddings.images", f"{world}/images.arrow", "--embeddings.texts", f"{world}/texts.arrow"]
    return [*data, *vectors, "--output", str(output), *FAST, *more]


def entities(world: Path) -> list[str]:
    places = {"prompts": "prompts.arrow", "masks": "masks.arrow", "table": "entities.parquet", "boxes": "boxes.parquet"}
    return [word for name, file in places.items() for word in (f"--entities.{name}", f"{world}/{file}")]


def run(*arguments: str) -> dict:
    assert rerank.main(list(arguments)) == 0
    output = Path(arguments[arguments.index("--output") + 1])
    return json.loads((output / "rerank.json").read_text())


@pytest.fixture(scope="module")
def applied(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    output = tmp_path_factory.mktemp("applied")
    return run(*words(world, output, "test", *entities(world), "--original_files", "true")), output


@pytest.fixture(scope="module")
def tuned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned")
    assert rerank.main(words(world, output, "val", *entities(world), "--action", "tune")) == 0
    return output


def test_before_and_after_are_listed_and_measured(applied) -> None:
    record, output = applied
    assert [stage["stage"] for stage in record["stages"]] == ["before", "EGR", "TBR"]
    for stage in record["stages"]:
        assert {"t2i_recall_at_1", "i2t_mean_recall", "rsum"} <= set(stage["figures"])
        folder = output / "lists" / stage["stage"].lower()
        texts, images = (read_predictions(str(folder / f"{side}_predictions.parquet")) for side in ("text", "image"))
        assert texts.column("query_id").to_pylist() == [str(one) for one in range(18, 36)]
        assert images.column("query_id").to_pylist() == list("ghijkl")
        firsts = [row["item_ids"][0] for row in texts.to_pylist()]
        hits = [first == "ghijkl"[at // 3] for at, first in enumerate(firsts)]
        assert stage["figures"]["t2i_recall_at_1"]["value"] == pytest.approx(100 * np.mean(hits))
    assert record["entities"] == {
        "captions": 18,
        "captions_without_entities": 4,
        "entities": 29,
        "entities_beyond_slots": 0,
        "entities_of_other_captions": 25,
    }
    assert record["stages"][0]["gains"] == {}
    assert set(record["stages"][2]["gains"]) == {
        f"{way}_{name}"
        for way in ("t2i", "i2t")
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "mean_recall")
    }


def test_original_files_hold_the_same_lists(applied) -> None:
    _, output = applied
    lines = [json.loads(line) for line in (output / "lists/egr/text_predictions.jsonl").read_text().splitlines()]
    table = pq.read_table(output / "lists/egr/text_predictions.parquet").to_pylist()
    assert [line["query_id"] for line in lines] == list(range(18, 36))
    assert [[item[0] for item in line["item_ids"]] for line in lines] == [row["item_ids"] for row in table]
    assert [item[3] for item in lines[0]["item_ids"]] == table[0]["scores"]
    bare = json.loads((output / "lists/tbr/image_predictions.jsonl").read_text().splitlines()[0])
    assert bare["image_id"] == "g" and all(type(item) is int for item in bare["item_ids"])


def test_the_page_shows_what_moved_and_escapes_what_it_shows(applied) -> None:
    _, output = applied
    html = (output / "rerank.html").read_text()
    assert "&lt;g&gt;" in html or "&lt;h&gt;" in html
    assert not re.search("<[g-l]>", html)
    assert "<rect" in html and "the dog 0.75" in html.lower()
    assert "http" not in html


def test_a_rerun_gives_the_same_bytes(world: Path, applied, tmp_path: Path) -> None:
    _, output = applied
    run(*words(world, tmp_path, "test", *entities(world), "--original_files", "true"))
    for name in ("rerank.html", "lists/tbr/text_predictions.parquet", "lists/egr/image_predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()


def test_lists_alone_are_enough_to_hold_both_directions_against_each_other(
    world: Path, applied, tmp_path: Path
) -> None:
    record, output = applied
    places = ["--predictions.texts", f"{output}/lists/egr/text_predictions.parquet"]
    places += ["--predictions.images", f"{output}/lists/egr/image_predictions.parquet"]
    data = ["--data.captions", f"{world}/dataset.json", "--data.split", "test"]
    found = run(*data, *places, "--output", str(tmp_path), *FAST)
    assert [stage["stage"] for stage in found["stages"]] == ["before", "TBR"]
    assert found["stages"][-1]["figures"] == record["stages"][-1]["figures"]
    name = "lists/tbr/text_predictions.parquet"
    ids = [pq.read_table(folder / name).column("item_ids").to_pylist() for folder in (output, tmp_path)]
    assert ids[0] == ids[1]


def test_each_step_is_switched_off_by_direction(world: Path, tmp_path: Path) -> None:
    off = ["--rerank.t2i.egr.enabled", "false", "--rerank.i2t.tbr.enabled", "false"]
    run(*words(world, tmp_path, "test", *entities(world), *off))
    lists = {
        stage: [pq.read_table(tmp_path / "lists" / stage / f"{side}_predictions.parquet") for side in ("text", "image")]
        for stage in ("before", "egr", "tbr")
    }
    same = {
        stage: [a.column("item_ids") == b.column("item_ids") for a, b in zip(lists[stage], lists[before])]
        for before, stage in (("before", "egr"), ("egr", "tbr"))
    }
    assert same["egr"][0] and not same["egr"][1]
    assert same["tbr"][1]


def test_the_empty_text_fills_slots_where_the_original_is_asked_for(world: Path, tmp_path: Path, capsys) -> None:
    legacy = ["--rerank.empty_slots", "bare_text"]
    assert rerank.main(words(world, tmp_path, "test", *entities(world), *legacy)) == 2
    assert "--entities.bare_text" in capsys.readouterr().err
    record = run(
        *words(world, tmp_path, "test", *entities(world), *legacy, "--entities.bare_text", f"{world}/bare.arrow")
    )
    assert record["entities"]["entities"] == 180
    assert record["settings"]["empty_slots"] == "bare_text"


def test_tuned_settings_are_taken_and_never_worse_on_their_split(world: Path, tuned: Path, tmp_path: Path) -> None:
    content = json.loads((tuned / "tuned.json").read_text())
    for way in ("t2i", "i2t"):
        for step in ("egr", "tbr"):
            trials = [one for one in content["trials"] if (one["way"], one["step"]) == (way, step)]
            taken = [one for one in trials if one["is_taken"]]
            assert len(taken) == 1 and taken[0]["mean_recall"] == max(one["mean_recall"] for one in trials)
            assert bool(taken[0]["setting"]) == content["settings"][way][step]["enabled"]
    record = run(*words(world, tmp_path, "test", *entities(world), "--tuned", str(tuned)))
    assert record["settings"] == content["settings"]
    assert record["tuned"]["split"]["name"] == "val"


def test_tuned_settings_are_refused_on_their_own_images(world: Path, tuned: Path, tmp_path: Path, capsys) -> None:
    arguments = words(world, tmp_path, "val", *entities(world), "--tuned", str(tuned))
    assert rerank.main(arguments) == 2
    assert "were tuned on 6 of the 6 images" in capsys.readouterr().err
    assert rerank.main([*arguments, "--allow_overlap", "true"]) == 0
    renamed = json.loads((world / "dataset.json").read_text())
    for entry in renamed["images"]:
        entry["split"] = {"val": "test", "test": "val"}[entry["split"]]
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    arguments[arguments.index("--data.captions") + 1] = str(tmp_path / "renamed.json")
    arguments[arguments.index("--data.split") + 1] = "test"
    assert rerank.main([*arguments, "--allow_overlap", "true"]) == 2
    assert "Tune them on other images." in capsys.readouterr().err
    (tuned / "tuned_on.parquet").rename(tuned / "gone.parquet")
    assert rerank.main(words(world, tmp_path, "test", *entities(world), "--tuned", str(tuned))) == 2
    assert "is not there, or not the one that belongs to" in capsys.readouterr().err
    (tuned / "gone.parquet").rename(tuned / "tuned_on.parquet")


@pytest.mark.parametrize("split", ["test", "val,test", "TestAll"])
def test_tuning_on_test_data_is_refused(world: Path, tmp_path: Path, capsys, split: str) -> None:
    assert rerank.main(words(world, tmp_path, split, "--action", "tune")) == 2
    assert "is refused" in capsys.readouterr().err
    assert not (tmp_path / "tuned.json").exists()


def test_a_plan_says_how_much_it_is_and_writes_nothing(world: Path, tmp_path: Path, capsys) -> None:
    assert rerank.main([*words(world, tmp_path / "o", "test", *entities(world)), "--plan"]) == 0
    shown = capsys.readouterr().out
    for fact in (
        "6 images, 18 captions",
        "216 pairs",
        "TBR k 20",
        "EGR masks 0.1, prompts 0.01, pool 128",
        "expected time",
    ):
        assert fact in shown
    assert not (tmp_path / "o").exists()


def test_a_loss_is_told(world: Path, tmp_path: Path, capsys) -> None:
    """Prompts that point away from their images, with all of the weight."""
    heavy = ["--rerank.t2i.egr.mask_weight", "0", "--rerank.t2i.egr.prompt_weight", "1"]
    swapped = ["--entities.prompts", f"{tmp_path}/away.arrow"]
    bank = read_vectors(f"{world}/prompts.arrow")
    away = make_vectors(bank.column("id").to_pylist(), -matrix(bank), groups=bank.column("group").to_pylist())
    write_vectors(f"{tmp_path}/away.arrow", away)
    record = run(*words(world, tmp_path / "o", "test", *entities(world), *heavy, *swapped))
    assert any(line.startswith("EGR lowers text to image R@1 by -") for line in record["warnings"])
    assert "switch it off, or tune it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--predictions.texts", "a"], "both: each direction needs the other"),
        (["--predictions.texts", "a", "--predictions.images", "b"], "give one of three: an evaluation"),
        (["--embeddings.images", "/no/such.arrow"], "'/no/such.arrow' does not exist"),
        (["--entities.prompts", "x"], "give entities.prompts and entities.masks, both"),
        (["--rerank.t2i.egr.mask_weight", "2"], "mask_weight and prompt_weight between 0 and 1"),
        (["--top_k", "0"], "top_k, threads and shown must be at least 1"),
        (["--tuned", "/no/such"], "'/no/such' does not exist"),
        (["--rerank.slots", "0"], "slots must be at least 1"),
    ],
)
def test_bad_input_is_one_paragraph(world: Path, tmp_path: Path, capsys, more: list[str], message: str) -> None:
    assert rerank.main(words(world, tmp_path, "test", *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "rerank.json").exists()


def test_a_pool_below_the_places_that_count_is_refused(world: Path, tmp_path: Path, capsys) -> None:
    small = ["--rerank.i2t.egr.pool", "15"]
    assert rerank.main(words(world, tmp_path, "test", *entities(world), *small)) == 2
    assert "i2t.egr.pool is 15, but 20 places" in capsys.readouterr().err


def test_tables_that_do_not_belong_together_are_refused(world: Path, tmp_path: Path, capsys) -> None:
    other = make_world(tmp_path / "other", seed=1)
    table = pq.read_table(other / "entities.parquet")
    rows = [CaptionEntities(*row[:3], row.entities[:1]) for row in entity_rows(table)]
    write_entities(str(other / "fewer.parquet"), entity_table(rows))
    more = ["--entities.table", f"{other}/fewer.parquet"]
    assert rerank.main(words(world, tmp_path / "o", "test", *entities(world), *more)) == 2
    assert "do not belong together: 10 captions" in capsys.readouterr().err


def test_vectors_of_several_models_are_refused(world: Path, tmp_path: Path, capsys) -> None:
    for name in ("prompts", "masks", "bare"):
        bank = read_vectors(f"{world}/{name}.arrow")
        groups = bank.column("group").to_pylist()
        narrow = make_vectors(bank.column("id").to_pylist(), matrix(bank)[:, :5].copy(), groups=groups)
        write_vectors(f"{tmp_path}/{name}.arrow", narrow)
    both = ["--entities.prompts", f"{tmp_path}/prompts.arrow", "--entities.masks", f"{tmp_path}/masks.arrow"]
    assert rerank.main(words(world, tmp_path / "o", "test", *both)) == 2
    assert "images are 8 wide, prompts 5 and masked captions 5" in capsys.readouterr().err
    legacy = ["--rerank.empty_slots", "bare_text", "--entities.bare_text", f"{tmp_path}/bare.arrow"]
    assert rerank.main(words(world, tmp_path / "o", "test", *entities(world), *legacy)) == 2
    assert "bare.arrow' is 5 wide and the prompts 8" in capsys.readouterr().err
    two = words(world, tmp_path / "o", "test")
    two[two.index("--embeddings.images") + 1] += ",b"
    two[two.index("--embeddings.texts") + 1] += ",c"
    assert rerank.main(two) == 2
    assert "takes the vectors of one model" in capsys.readouterr().err


def test_tuned_settings_with_entities_need_their_vectors(world: Path, tuned: Path, tmp_path: Path, capsys) -> None:
    content = json.loads((tuned / "tuned.json").read_text())
    content["settings"]["t2i"]["egr"]["enabled"] = True
    for name in ("tuned.json", "tuned_on.parquet"):
        (tmp_path / name).write_bytes((tuned / name).read_bytes())
    (tmp_path / "tuned.json").write_text(json.dumps(content))
    assert rerank.main(words(world, tmp_path / "o", "test", "--tuned", str(tmp_path))) == 2
    assert "re-ranks by entities: give embeddings, --entities.prompts" in capsys.readouterr().err
