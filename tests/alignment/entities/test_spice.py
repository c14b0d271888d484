"""Tuples of SPICE as entities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.entities.entity_tables import Entity
from alignment.entities.spice import entities_of_tuples, read_spice
from alignment.entities.taggers import load_tagger
from xmatch.errors import InputError

TAGGER = load_tagger("textblob")


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_both_forms_are_read(tmp_path: Path) -> None:
    spice = [{"image_id": 7, "test_tuples": [{"tuple": ["man"], "truth_value": False}, {"tuple": ["man", "tall"]}]}]
    phrases = [{"caption_id": "7", "image_id": "x", "phrases": [["man"], ["man", "tall"]]}]
    for number, content in enumerate((spice, phrases)):
        assert read_spice(write(tmp_path / str(number), content)) == {"7": [("man",), ("man", "tall")]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a JSON list of objects"),
        ([{"image_id": 1}], "row 0: expected a list test_tuples or phrases"),
        ([{"image_id": 1, "phrases": [["a", "b", "c", "d"]]}], "row 0: .* is no tuple"),
        ([{"image_id": 1, "phrases": []}, {"image_id": "2", "phrases": []}], "row 1: id '2' is of type str"),
        ([{"image_id": 1, "phrases": []}] * 2, "row 1: caption '1' was there before"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_spice(write(tmp_path / "t.json", content))


def test_tuples_become_spans_where_the_caption_says_them() -> None:
    caption = "Two Tall men ride brown horses near a fire hydrant"
    tuples = [("man",), ("man", "tall"), ("man", "ride", "horse"), ("horse", "brown"), ("fire hydrant",), ("boat",)]
    found = entities_of_tuples(caption, tuples, TAGGER)
    assert found.entities == (Entity("Tall men", 4, 12), Entity("brown horses", 18, 30), Entity("fire hydrant", 38, 50))
    assert found.not_found == ("boat",)
    assert all(caption[entity.start : entity.end] == entity.text for entity in found.entities)
