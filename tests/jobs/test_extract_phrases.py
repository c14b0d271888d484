"""Phrases of sentences through the job's own main and real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import tiny_vocabulary
from toy_steps import tree

from alignment.entities.extraction import caption_listing
from alignment.mvptr.phrase_extraction import ExtractPhrases, pair_ids, phrases_by_caption, read_pairs
from alignment.mvptr.phrase_vocabulary import read_vocabulary
from jobs import extract_phrases
from xmatch.data import files
from xmatch.errors import InputError

PAIRS = [
    {"text": "A child holding a flowered umbrella and petting a yak.", "image_id": "test_img", "label": 1},
    {"text": "A narrow kitchen filled with appliances and cooking utensils.", "image_id": "test_img1", "label": 1},
    {"text": "A big cat", "image_id": "test_img", "label": 0},
    {"text": "of", "image_id": "test_img", "label": 0},
]
PHRASES = [
    [["child"], ["umbrella"], ["umbrella", "flowered"], ["yak"]],
    [["appliance"], ["kitchen"], ["kitchen", "fill with", "appliance"], ["kitchen", "fill with", "utensil"],
     ["kitchen", "narrow"], ["utensil"], ["utensil", "cooking"]],
    [["cat"], ["cat", "big"]],
    [],
]  # fmt: skip
FIXED = ["--phrases.tagger", "textblob", "--phrases.per_shard", "2", "--ray.calibration_s", "0"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    return str(tmp_path / "pairs.json")


def results(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(str(folder)).items() if not name.startswith("run/")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_list_of_pairs_becomes_the_published_one(ray_here, data: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    tiny_vocabulary().save_pretrained(str(tmp_path / "words"))
    given = [*FIXED, "--data", data, "--output", str(out)]
    more = ["--phrases.tokenizer", str(tmp_path / "words"), "--phrases.min_sentences", "1"]
    assert extract_phrases.main([*given, *more]) == 0
    made = json.loads((out / "processed_pairs.json").read_text())
    assert made == [{**pair, "phrases": own} for pair, own in zip(PAIRS, PHRASES, strict=True)]
    assert [list(one) for one in made] == [["text", "image_id", "label", "phrases"]] * 4
    vocabulary = read_vocabulary(str(out / "id2phrase.json"))
    assert {tuple(one) for own in PHRASES for one in own} == set(vocabulary.id_of)
    assert "sentences without phrases" in capsys.readouterr().out
    whole = results(out)
    (out / "completions/part-00001.json").unlink()
    assert extract_phrases.main([*given, *more]) == 0
    assert results(out) == whole


@pytest.mark.ray
@pytest.mark.slow
def test_tuples_of_spice_are_taken_and_set_beside_the_parser(ray_here, data: str, tmp_path: Path) -> None:
    spice = [
        {"image_id": one, "test_tuples": [{"tuple": phrase} for phrase in own]}
        for one, own in zip(["test_img_0", "test_img1_0", "test_img_1", "test_img_2"], PHRASES, strict=True)
    ]
    spice[2]["test_tuples"] = [{"tuple": ["cat"]}, {"tuple": ["big", "cat", "x"]}, {"tuple": ["cat"]}]
    (tmp_path / "spice.json").write_text(json.dumps(spice))
    out = tmp_path / "out"
    given = [*FIXED, "--data", data, "--phrases.tuples", str(tmp_path / "spice.json"), "--output", str(out)]
    assert extract_phrases.main(given) == 0
    assert phrases_by_caption(str(out))["test_img_1"] == [("cat",), ("big", "cat", "x"), ("cat",)]
    figures = json.loads((out / "run/report.json").read_text())["values"]["agreement"]
    assert figures["precision"] == pytest.approx(12 / 13) and figures["jaccard"] == pytest.approx(12 / 14)
    assert figures["jaccard_by_sentence"] == pytest.approx((3 + 1 / 3) / 4)
    each = files.read_parquet(str(out / "agreement.parquet")).to_pylist()
    assert [one["caption_id"] for one in each] == ["test_img_0", "test_img1_0", "test_img_1", "test_img_2"]
    assert each[2]["recall"] == 0.5 and each[0]["jaccard"] == 1


def test_pairs_of_one_image_are_numbered() -> None:
    assert pair_ids(PAIRS) == ["test_img_0", "test_img1_0", "test_img_1", "test_img_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"text": "a", "image_id": 1}, {"text": 3, "image_id": 2}], "row 1: expected an object with text"),
        ([{"text": "a"}], "row 0: expected an object with text and image_id"),
        ([{"text": "a", "image_id": 1}, {"text": "b", "image_id": "1"}], "row 1: image_id '1' is of type str"),
        ([], "no list of pairs"),
        ({"text": "a"}, "no list of pairs"),
    ],
)
def test_broken_lists_name_file_and_row(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as refused:
        read_pairs(str(tmp_path / "p.json"))
    assert "p.json" in str(refused.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "one of them"),
        (["--data", "d.json", "--captions.captions", "c.json", "--captions.images", "i"], "one of them"),
        (["--data", "/none.json"], "does not exist"),
        (["--data", "d.json", "--phrases.min_sentences", "0"], "must be at least 1"),
    ],
)
def test_bad_settings_are_one_paragraph(tmp_path: Path, capsys, more: list[str], message: str) -> None:
    assert extract_phrases.main(["--plan", "--output", str(tmp_path / "out"), *more]) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_a_plan_writes_nothing(data: str, tmp_path: Path, capsys) -> None:
    assert extract_phrases.main([*FIXED, "--plan", "--data", data, "--output", str(tmp_path / "out")]) == 0
    assert "textblob" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_documents_are_quarantined_and_other_taggers_refused() -> None:
    rows = caption_listing(["a", "b"], ["i", "i"], ["x" * 20_001, "a dog"])
    made = ExtractPhrases("textblob")("part-00000", rows)
    assert made.table.column("phrases").to_pylist() == [[["dog"]]] and made.table.column("parsed").null_count == 1
    assert made.quarantine.to_pylist()[0]["item"] == "a"
    with pytest.raises(InputError, match="the run 'spacy 3'"):
        ExtractPhrases("textblob", "spacy 3")("part-00000", rows)
