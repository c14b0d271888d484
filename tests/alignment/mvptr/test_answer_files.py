"""Answers of the original's questions: there and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.mvptr.answer_files import INDEX, TSV, open_answers, write_answers
from alignment.mvptr.corpus import read_corpus, write_corpus
from alignment.mvptr.tasks.samples import Sample
from xmatch.errors import InputError

WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6))
def test_answers_come_back(tmp_path: Path, answers: list[str]) -> None:
    made = {f"{row:08d}": answer for row, answer in enumerate(answers)}
    write_answers(str(tmp_path), made)
    found = open_answers(f" gqa = {tmp_path} ,")["gqa"]
    assert {name: found.answer_of(name, "here") for name in made} == made


def test_a_corpus_with_questions_comes_back(tmp_path: Path) -> None:
    samples = [
        Sample("0", "gqa_7", "is it red ?", [7], links=[[2]], answer="yes"),
        Sample("1", "gqa_7", "a red mat", [8, 9], links=[[1], [1, 2]]),
        Sample("2", "gqa_12_9", "what is it ?", [], links=[], answer="a big\tdog"),
    ]
    places = str(tmp_path / "c.tsv"), str(tmp_path / "sg.json")
    with pytest.raises(InputError, match="samples have answers; give the folder"):
        write_corpus(*places, samples)
    write_corpus(*places, samples, str(tmp_path))
    assert read_corpus(*places, answers=f"gqa={tmp_path}") == samples
    assert [one.answer for one in read_corpus(*places)] == [None] * 3


def test_several_labels_are_one_answer_of_its_data_set(tmp_path: Path) -> None:
    for name, labels in (("gqa", ["on", "mat"]), ("coco", ["yes"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / TSV).write_text(f"5\t{json.dumps({'labels': labels})}\r\n")
        (tmp_path / name / INDEX).write_text('{"5": 0}')
    (tmp_path / "c.tsv").write_text(
        "gqa_1\tgqa_qa_1_5\twhere is it ?\ncoco_1\tcoco_qa_1_5\tis it ?\ncoco_1\tcoco_1\tx\n"
    )
    found = read_corpus(str(tmp_path / "c.tsv"), "", answers=f"gqa={tmp_path}/gqa,coco={tmp_path}/coco")
    assert [one.answer for one in found] == ["on mat", "yes", None]


@pytest.mark.parametrize(
    ("label", "tsv", "index", "said"),
    [
        ("gqa_qa_7_5", "", '{"4": 0}', r"c.tsv', row 1: '.*QA_qaid2idx.json' has no question '5'"),
        ("gqa_qa_7_5", "", '{"5": 2}', r"QA_qaid2idx.json': '5' is in row 2, but '.*QA_fileB.tsv' has 2 rows"),
        ("gqa_qa_7_5", "", '{"5": -1}', r"QA_qaid2idx.json': '5' is in row -1"),
        ("gqa_qa_7_5", "5", '{"5": 1}', r"QA_fileB.tsv', row 1: 1 columns; expected question id and JSON"),
        (
            "gqa_qa_7_5",
            '6\t{"labels": ["a"]}',
            '{"5": 1}',
            r"QA_fileB.tsv', row 1: '6', but '.*json' says '5' is there",
        ),
        ("gqa_qa_7_5", '5\t{"labels": [', '{"5": 1}', r"QA_fileB.tsv', row 1: no JSON in the second column"),
        ("gqa_qa_7_5", '5\t["a"]', '{"5": 1}', r"QA_fileB.tsv', row 1: expected an object"),
        ("gqa_qa_7_5", '5\t{"labels": "a"}', '{"5": 1}', r"QA_fileB.tsv', row 1: expected 'labels' to be list"),
        ("gqa_qa_7_5", '5\t{"labels": [" "]}', '{"5": 1}', r"QA_fileB.tsv', row 1: .* with an answer in it"),
        ("gqa_qa_7_5", '5\t{"labels": [3]}', '{"5": 1}', r"QA_fileB.tsv', row 1: .* list of texts"),
        ("gqa_qa_8_5", "", "{}", r"c.tsv', row 1: label id 'gqa_qa_8_5' is of no question about image 'gqa_7'"),
        ("coco_qa_7_5", "", "{}", r"row 1: label id 'coco_qa_7_5' .* expected 'gqa_qa_7_QUESTION'"),
        ("qa_7", "", "{}", r"c.tsv', row 1: label id 'qa_7' is of no question"),
        ("gqa_qa_7_5", "", "[]", r"QA_qaid2idx.json': expected an object of rows"),
    ],
)
def test_bad_input_names_file_and_row(tmp_path: Path, label: str, tsv: str, index: str, said: str) -> None:
    (tmp_path / "c.tsv").write_text(f"gqa_7\tgqa_7\tfine\ngqa_7\t{label}\twhat ?\n")
    (tmp_path / TSV).write_text(f'9\t{{"labels": ["a"]}}\n{tsv or "x"}\n')
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InputError, match=said):
        read_corpus(str(tmp_path / "c.tsv"), "", answers=f"gqa={tmp_path}")


def test_a_data_set_without_answers_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("coco_7\tcoco_qa_7_5\twhat ?\n")
    write_answers(str(tmp_path), {"5": "cat"})
    with pytest.raises(InputError, match=r"c.tsv', row 0: a question of 'coco', but answers are given of gqa"):
        read_corpus(str(tmp_path / "c.tsv"), "", answers=f"gqa={tmp_path}")


@pytest.mark.parametrize("listed", ["FOLDER", "=FOLDER", "gqa=", "gqa=F,gqa=F"])
def test_what_names_no_folder_is_refused(tmp_path: Path, listed: str) -> None:
    write_answers(str(tmp_path), {"5": "cat"})
    with pytest.raises(InputError, match="answers are NAME=FOLDER of each data set once"):
        open_answers(listed.replace("F,", f"{tmp_path},"))
