"""Questions and answers: files, soft scores, losses, and what the challenge takes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvptr_cases import golden
from torch.nn.functional import cross_entropy

from alignment.mvptr.tasks import vqa
from jobs import convert
from xmatch.errors import InputError

ANSWERS = ["yes", "no", "2", "a red bus"]
RECORD = {"q": "is it red?", "o": "bus;tree;bus", "an": [0, 1], "s": [1.0, 0.3], "img_id": "COCO_val2014_000000000042"}


def written(folder: Path, records: list[Any], phrases: list[Any] | None = None) -> tuple[str, str]:
    full = [record if isinstance(record, str) else {"q_id": row, **record} for row, record in enumerate(records)]
    (folder / "qla.json").write_text(json.dumps(full))
    (folder / "sg.json").write_text(json.dumps(phrases or [[[7, 9], {}]] * len(records)))
    return str(folder / "qla.json"), str(folder / "sg.json")


def test_scores_and_losses_are_the_originals() -> None:
    case = golden("vqa_ve")
    logits, targets = torch.tensor(case["logits"]), torch.tensor(case["targets"])
    assert vqa.answer_loss(logits, targets, "bce").mean().item() == pytest.approx(case["bce_loss_times_num_labels"])
    assert vqa.answer_loss(logits, targets, "kl").mean().item() == pytest.approx(case["kl_loss"])
    np.testing.assert_allclose(vqa.soft_scores(logits, targets), case["soft_score_per_example"])
    assert cross_entropy(logits, torch.tensor(case["ce_labels"])).item() == pytest.approx(case["ce_loss"])


def test_questions_are_read_with_answers_phrases_tags_and_kinds(tmp_path: Path) -> None:
    number = {**RECORD, "an": [2], "s": [0.9]}
    path, phrases = written(
        tmp_path, [RECORD, {**RECORD, "an": [], "s": []}, number, {**RECORD, "an": [3, 0], "s": [1, 0]}]
    )
    found = vqa.read_questions(path, phrases, ANSWERS, has_answers=True)
    assert found.dropped == 1
    assert [sample.id for sample in found.samples] == ["0", "2", "3"]
    first = found.samples[0]
    assert (first.labels, first.scores, first.tags, first.phrases) == (
        [0, 1],
        [1.0, 0.3],
        ["bus", "tree", "bus"],
        [7, 9],
    )
    assert [sample.kind for sample in found.samples] == list(vqa.KINDS)
    test = vqa.read_questions(path, phrases, ANSWERS, has_answers=False)
    assert (len(test.samples), test.dropped, test.samples[0].labels) == (4, 0, [])


def test_kinds_are_the_data_sets_where_it_says_them(tmp_path: Path) -> None:
    path, phrases = written(tmp_path, [RECORD])
    place = tmp_path / "annotations.json"
    place.write_text(json.dumps({"annotations": [{"question_id": 0, "answer_type": "other"}]}))
    found = vqa.read_questions(path, phrases, ANSWERS, has_answers=True, kinds=vqa.read_kinds(str(place)))
    assert found.samples[0].kind == "other"
    place.write_text(json.dumps({"annotations": [{"question_id": 0, "answer_type": "colour"}]}))
    with pytest.raises(InputError, match="annotation 0: answer_type 'colour'"):
        vqa.read_kinds(str(place))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"an": [4], "s": [1.0]}, r"qla.json', row 1: unknown answer label 4; the answers are 0 to 3"),
        ({"an": [-1], "s": [1.0]}, r"row 1: unknown answer label -1"),
        ({"an": ["yes"], "s": [1.0]}, r"row 1: unknown answer label 'yes'"),
        ({"an": [0], "s": [1.0, 0.5]}, r"row 1: 1 answers \('an'\) with 2 scores"),
        ({"an": [0], "s": [1.5]}, r"row 1: score 1.5"),
        ({"q": None}, r"row 1: expected 'q' to be str"),
        ({"img_id": 1.5}, r"row 1: expected 'img_id' to be int or str"),
    ],
)
def test_a_broken_question_names_file_and_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path, phrases = written(tmp_path, [RECORD, {**RECORD, **change}])
    with pytest.raises(InputError, match=message):
        vqa.read_questions(path, phrases, ANSWERS, has_answers=True)


def test_phrases_of_another_file_or_out_of_range_are_refused(tmp_path: Path) -> None:
    path, phrases = written(tmp_path, [RECORD, RECORD], [[[1], {}]])
    with pytest.raises(InputError, match=r"sg.json' has 1 rows, but .*qla.json' has 2"):
        vqa.read_questions(path, phrases, ANSWERS, has_answers=True)
    path, phrases = written(tmp_path, [RECORD, RECORD], [[[1], {}], [[60], {}]])
    with pytest.raises(InputError, match=r"sg.json', row 1: phrase id 60 is out of range; the model has 60 rows"):
        vqa.read_questions(path, phrases, ANSWERS, has_answers=True, rows=60)
    path, phrases = written(tmp_path, [RECORD], [{"phrases": []}])
    with pytest.raises(InputError, match=r"sg.json', row 0: expected \[phrase ids"):
        vqa.read_questions(path, phrases, ANSWERS, has_answers=True)


@pytest.mark.parametrize("content", [ANSWERS, {answer: label for label, answer in enumerate(ANSWERS)}])
def test_pickled_answers_pass_through_the_one_safe_converter(tmp_path: Path, content: Any) -> None:
    with open(tmp_path / "answers.pkl", "wb") as sink:
        pickle.dump(content, sink)
    with pytest.raises(InputError, match="--what legacy"):
        vqa.read_answers(str(tmp_path / "answers.pkl"))
    given_ = ["--what", "legacy", "--input", str(tmp_path / "answers.pkl"), "--output", str(tmp_path)]
    assert convert.main(given_) == 0
    assert vqa.read_answers(str(tmp_path / "answers.json")) == ANSWERS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"yes": 0, "no": 2}, "labels must be 0 to 1"),
        ({"yes": 0, "no": "1"}, "answer 'no' has the label '1'"),
        (["yes", 3], "row 1: expected an answer as text, got 3"),
        ([], "is no list of answers"),
    ],
)
def test_broken_answers_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        vqa.read_answers(str(tmp_path / "a.json"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from(vqa.KINDS)), min_size=1, max_size=20))
def test_the_accuracy_of_all_is_the_mean_of_the_kinds_by_their_size(rows: list[tuple[float, str]]) -> None:
    scores, kinds = zip(*rows, strict=True)
    found = vqa.accuracy_by_kind(scores, kinds)
    weighted = sum(found[f"accuracy_{kind}"] * kinds.count(kind) for kind in set(kinds)) / len(kinds)
    assert found["accuracy"] == pytest.approx(weighted, abs=1e-4)
    assert set(found) == {"accuracy", *(f"accuracy_{kind}" for kind in kinds)}


@pytest.mark.parametrize(
    ("answer", "kind"), [("Yes", "yes/no"), ("12", "number"), ("2.5", "number"), ("two", "other"), ("1,000", "number")]
)
def test_a_kind_shows_in_an_answers_form(answer: str, kind: str) -> None:
    assert vqa.kind_of(answer) == kind


def test_results_are_what_the_challenge_takes(tmp_path: Path) -> None:
    path = str(tmp_path / vqa.RESULTS_FILE)
    vqa.write_results(path, [("42", "yes"), ("9", "café")])
    assert json.loads(Path(path).read_text()) == [
        {"question_id": 42, "answer": "yes"},
        {"question_id": 9, "answer": "café"},
    ]
    assert vqa.read_results(path) == [("42", "yes"), ("9", "café")]


def test_published_figures_are_the_kinds_mean_at_sight() -> None:
    for row in vqa.PUBLISHED.values():
        kinds = [row[f"accuracy_{kind}"] for kind in vqa.KINDS]
        assert min(kinds) < row["accuracy"] < max(kinds)
