"""Entities of captions, their boxes, and their vectors, through the jobs' own mains and real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_detectors import save_owl
from small_models import make_images
from toy_steps import tree

from alignment.entities.entity_tables import CaptionEntities, entity_rows, entity_table, read_boxes, read_entities
from alignment.entities.entity_texts import EntityReader, EntitySource, entity_counts, plan_entity_shards
from alignment.entities.extraction import ExtractEntities, caption_listing
from alignment.entities.phrases import phrase_listing
from alignment.entities.prompts import LEGACY_MASK
from jobs import embed, extract_entities
from xmatch.data import files
from xmatch.data.vectors import matrix, read_vectors
from xmatch.embedding import EmbedTexts
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder

TEXTS = ["The cat sat on the mat .", "a big dog", "running .", "The cat of a world", "it is", "The big cat and the cat"]


def captions_file(folder: Path) -> str:
    """A Karpathy JSON of three images with two captions each."""
    images = [
        {
            "filename": f"{'abc'[at]}.jpg",
            "split": "train",
            "sentences": [{"raw": TEXTS[2 * at + i], "sentid": 2 * at + i} for i in (0, 1)],
        }
        for at in range(3)
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images}))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    captions_file(tmp_path)
    make_images(tmp_path / "images", 3)
    return tmp_path


def words(run: Path, *more: str) -> list[str]:
    given = ["--captions.captions", str(run / "captions.json"), "--captions.images", str(run / "images")]
    fixed = ["--extraction.tagger", "textblob", "--captions_per_shard", "4", "--ray.calibration_s", "0"]
    return [*given, *fixed, "--output", str(run / "out"), *more]


def texts_of(run: Path) -> list[list[str]]:
    return [[entity.text for entity in row.entities] for row in entity_rows(read_entities(str(run / "out")))]


def results(run: Path) -> dict[str, bytes]:
    """Every file of the runs but those that tell of the run itself."""
    return {name: data for name, data in tree(str(run / "out")).items() if "/run/" not in name}


EXPECTED = [
    ["The cat", "the mat"],
    ["a big dog"],
    [],
    ["The cat", "a world", "The cat of a world"],
    [],
    ["The big cat", "the cat"],
]


@pytest.mark.ray
def test_captions_become_entities(ray_here, run: Path, capsys) -> None:
    assert extract_entities.main(words(run)) == 0
    shown = capsys.readouterr().out
    assert "extract_entities: plan" in shown and "captions without entities" in shown
    assert texts_of(run) == EXPECTED
    report = json.loads((run / "out/run/report.json").read_text())["values"]
    assert report["counts"]["captions"] == 6 and report["counts"]["captions_without_entities"] == 2
    assert report["captions_by_entities"] == {"0": 2, "1": 1, "2": 2, "3": 1}
    assert report["longest_entity"] == "The cat of a world"
    assert not (run / "out/boxes").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_entities_become_vectors_of_their_captions(ray_here, run: Path, tiny_model: str, capsys) -> None:
    assert extract_entities.main(words(run)) == 0
    model = DualEncoder.from_pretrained(tiny_model).eval()
    for side, mark in (("prompts", "p"), ("masked_texts", "m")):
        given = ["--side", side, "--model", tiny_model, "--entities.path", str(run / "out"), "--rows_per_shard", "3"]
        assert embed.main([*given, "--output", str(run / side), "--ray.calibration_s", "0"]) == 0
        table = read_vectors(str(run / side))
        ids = [f"{caption}#{mark}{number:04d}" for caption, own in enumerate(EXPECTED) for number in range(len(own))]
        assert table.column("id").to_pylist() == ids
        assert table.column("group").to_pylist() == [one.split("#")[0] for one in ids]
        text = {"prompts": "a photo containing a big dog", "masked_texts": model.tokenizer.mask_token}[side]
        expected = model.encode_texts([text])[0]
        np.testing.assert_allclose(matrix(table)[2], expected, atol=1e-5)
    assert "8 of 6 captions, 2 of them without any" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_a_detector_gives_boxes_of_the_entities(ray_here, run: Path, capsys) -> None:
    (run / "images" / "b.jpg").write_bytes(b"no image")
    model = save_owl(run / "owl")
    boxes = ["--boxes.model", model, "--boxes.threshold", "0", "--images_per_shard", "2", "--device", "cpu"]
    assert extract_entities.main(words(run, *boxes, "--ray.faults.max_quarantined", "0.5")) == 0
    table = read_boxes(str(run / "out"))
    pairs = list(zip(table.column("image_id").to_pylist(), table.column("phrase").to_pylist()))
    assert set(pairs) <= {(image, phrase) for image, own in PHRASES.items() for phrase in own}
    counts = json.loads((run / "out/run/report.json").read_text())["values"]["boxes"]
    assert counts["boxes"] == len(pairs) == len(set(pairs)) > 0
    assert (counts["images"], counts["quarantined"]) == (2, 1)
    broken = [files.read_parquet(path) for path in files.list_files(str(run / "out/boxes/quarantine"))]
    assert pa.concat_tables(broken).column("item").to_pylist() == ["b"]
    assert "detector" in capsys.readouterr().out


PHRASES = {"a": ["the cat", "the mat", "a big dog"], "c": ["the big cat", "the cat"]}


@pytest.mark.ray
@pytest.mark.slow
def test_a_rerun_and_a_run_begun_before_end_in_the_same_bytes(ray_here, run: Path, capsys) -> None:
    assert extract_entities.main(words(run)) == 0
    whole = results(run)
    (run / "out/entities/completions/part-00001.json").unlink()
    (run / "out/entities/manifest.json").unlink()
    assert extract_entities.main(words(run)) == 0
    assert results(run) == whole
    assert extract_entities.main(words(run, "--extraction.max_words", "2")) == 2
    assert "another max_words" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_tuples_of_spice_become_entities(ray_here, run: Path) -> None:
    tuples = [{"caption_id": at, "phrases": [["cat"], ["cat", "big"], ["boat"]]} for at in range(6)]
    (run / "spice.json").write_text(json.dumps(tuples))
    more = ["--extraction.tuples", str(run / "spice.json"), "--ray.faults.max_quarantined", "1"]
    assert extract_entities.main(words(run, *more)) == 0
    assert texts_of(run) == [["cat"], [], [], ["cat"], [], ["big cat", "cat"]]
    report = json.loads((run / "out/run/report.json").read_text())["values"]
    assert report["counts"]["not_in_their_captions"] == 6 + 3


@pytest.mark.ray
def test_visual_genome_needs_no_captions(ray_here, tmp_path: Path) -> None:
    thing = {"names": ["Oak"], "x": 1, "y": 1, "w": 2, "h": 2}
    (tmp_path / "objects.json").write_text(json.dumps([{"image_id": 5, "objects": [thing]}]))
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 5, "width": 4, "height": 4}]))
    given = ["--visual_genome.objects", str(tmp_path / "objects.json")]
    given += ["--visual_genome.image_data", str(tmp_path / "image_data.json"), "--output", str(tmp_path / "out")]
    assert extract_entities.main(given) == 0
    assert read_boxes(str(tmp_path / "out/visual_genome")).column("phrase").to_pylist() == ["oak"]


def test_a_plan_forecasts_and_writes_nothing(run: Path, capsys) -> None:
    model = save_owl(run / "owl")
    more = ["--plan", "--ray.calibration_s", "0.2", "--boxes.model", model, "--device", "cpu"]
    assert extract_entities.main(words(run, *more)) == 0
    shown = capsys.readouterr().out
    assert "expected time" in shown and "6 of 3 images" in shown and "textblob" in shown
    assert not (run / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--captions.captions", ""], "belong together"),
        (["--boxes.model", "m", "--captions.inputs", "text"], "give captions with their images"),
        (["--boxes.threshold", "2"], "between 0 and 1"),
        (["--extraction.max_words", "0"], "max_words must be at least 1"),
        (["--extraction.tagger", "en_none"], "spaCy has no model 'en_none'"),
        (["--visual_genome.objects", "o.json"], "belong together"),
        (["--extraction.tuples", "/none.json"], "does not exist"),
        (["--captions_per_shard", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_one_paragraph(run: Path, capsys, more: list[str], message: str) -> None:
    assert extract_entities.main(words(run, "--plan", *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_the_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit):
        extract_entities.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Find the entities of captions" in shown and "--boxes.threshold" in shown
    assert "Nothing is downloaded" in shown


def step_of(captions: list[str], **settings: object) -> tuple[list[CaptionEntities], dict[str, int], pa.Table]:
    rows = caption_listing([f"c{at}" for at in range(len(captions))], ["i"] * len(captions), captions)
    made = ExtractEntities("textblob", **settings)("part-00000", rows)
    return entity_rows(made.table), made.counts, made.quarantine


def test_documents_are_quarantined_and_long_entities_counted() -> None:
    rows, counts, broken = step_of(["a dog", "x" * 20_001, "a very very big red wooden toy car"], max_words=3)
    assert [row.caption_id for row in rows] == ["c0", "c2"]
    assert broken.to_pylist()[0]["item"] == "c1" and "20,001 characters" in broken.to_pylist()[0]["reason"]
    assert counts["dropped_by_max_words"] == 1 and counts["captions_without_entities"] == 1


def test_a_worker_with_another_tagger_is_refused() -> None:
    with pytest.raises(InputError, match="has the tagger 'textblob .*', the run 'spacy 3'"):
        step_of(["a dog"], identity="spacy 3")


def test_ids_must_be_unique_and_tuples_complete() -> None:
    with pytest.raises(InputError, match="'a' comes twice"):
        caption_listing(["b", "a", "a"], ["i"] * 3, ["x"] * 3)
    with pytest.raises(InputError, match="1 of 2 captions have no tuples, the first is 'b'"):
        caption_listing(["a", "b"], ["i"] * 2, ["x"] * 2, {"a": []})
    with pytest.raises(InputError, match="image 'i' of caption 'c0' is not among the images"):
        phrase_listing(step_of(["a dog"])[0], {})


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = step_of(["The dog sees the DOG", "it is", "a cat", "it is", "it is"])[0]
    files.write_parquet(str(tmp_path / "e.parquet"), entity_table(rows))
    others = [row._replace(caption_id=f"{row.caption_id}'") for row in rows[1::2]]
    files.write_parquet(str(tmp_path / "f.parquet"), entity_table(others))
    return str(tmp_path)


@pytest.mark.parametrize("rows_per_shard", [1, 2, 100])
def test_shards_hold_every_text_once_and_none_is_empty(table: str, rows_per_shard: int) -> None:
    source = EntitySource(path=table)
    reader = EntityReader(source, "prompts", "")
    parts = [reader(shard) for shard in plan_entity_shards(source, rows_per_shard)]
    assert all(len(part) for part in parts)
    assert pa.concat_tables(parts).column("id").to_pylist() == ["c0#p0000", "c2#p0000"]
    assert tuple(entity_counts(source)) == (7, 5, 2, 0)


def test_masks_are_by_offset_or_as_in_the_original(table: str) -> None:
    shard = plan_entity_shards(EntitySource(path=table), 100)[0]
    masked = {
        legacy: EntityReader(EntitySource(path=table, legacy=legacy), "masked_texts", LEGACY_MASK)(shard)
        for legacy in (False, True)
    }
    assert masked[False].column("text").to_pylist() == ["[MASK] sees [MASK]", "[MASK]"]
    assert masked[True].column("text").to_pylist() == ["The dog sees the DOG", "[MASK]"]


def test_texts_keep_their_captions_as_groups(table: str, tiny_model: str) -> None:
    source = EntitySource(path=table)
    rows = EntityReader(source, "prompts", "")(plan_entity_shards(source, 100)[0])
    made = EmbedTexts(tiny_model, device="cpu")("part-00000", rows)
    assert made.table.column("group").to_pylist() == ["c0", "c2"]
    assert made.table.column("id").to_pylist() == ["c0#p0000", "c2#p0000"]
    assert made.counts == {"texts": 2}


def test_sides_of_entities_need_entities(capsys) -> None:
    for side in ("prompts", "masked_texts"):
        assert embed.main(["--side", side, "--model", "m", "--output", "/none"]) == 2
        assert f"--side {side} needs --entities.path" in capsys.readouterr().err


def test_slots_take_the_first_entities_and_nothing_is_refused(tmp_path: Path) -> None:
    rows = step_of(["a cat of a dog", "it is"])[0]
    files.write_parquet(str(tmp_path / "e.parquet"), entity_table(rows))
    few = EntitySource(path=str(tmp_path), slots=2)
    assert str(entity_counts(few)) == "2 of 2 captions, 1 of them without any; 1 more are beyond the slots"
    texts = EntityReader(few, "prompts", "")(plan_entity_shards(few, 9)[0]).column("text").to_pylist()
    assert texts == ["a photo containing a cat", "a photo containing a dog"]
    files.write_parquet(str(tmp_path / "e.parquet"), entity_table(rows[1:]))
    with pytest.raises(InputError, match="none of its captions has one"):
        plan_entity_shards(few, 9)
