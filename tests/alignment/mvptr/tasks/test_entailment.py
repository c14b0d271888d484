"""Visual entailment: its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.tasks import entailment
from xmatch.errors import InputError

VOCABULARY = PhraseVocabulary({7: ("dog",), 50: ("dog", "brown")})
RECORD = {"pairID": "1.jpg#0r1e", "Flickr30K_ID": 1, "sentence2": "A dog runs.", "gold_label": "entailment"}


def read(folder: Path, records: list[Any], phrases: list[Any] | None = None) -> list[Any]:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "snli_ve_dev.jsonl").write_text("".join(f"{line}\n" for line in lines))
    place = ""
    if phrases is not None:
        place = str(folder / "dev_sgs.json")
        (folder / "dev_sgs.json").write_text(json.dumps(phrases))
    return entailment.read_entailment(str(folder / "snli_ve_dev.jsonl"), place, VOCABULARY)


def test_sentences_are_read_with_their_phrases(tmp_path: Path) -> None:
    other = {**RECORD, "pairID": "2", "gold_label": "contradiction"}
    phrases = [[[["dog"], ["cat"], ["dog", "brown"]], "1.jpg#0r1e"], [[], "2"]]
    first, second = read(tmp_path, [RECORD, other], phrases)
    assert (first.id, first.image_id, first.text) == ("1.jpg#0r1e", "1", "A dog runs.")
    assert (first.labels, first.kind, first.phrases) == ([2], "entailment", [7, 50])
    assert (second.labels, second.phrases) == ([0], [])
    assert [one.phrases for one in read(tmp_path, [RECORD])] == [[]]


@pytest.mark.parametrize(
    ("record", "phrases", "message"),
    [
        ({**RECORD, "gold_label": "-"}, None, r"dev.jsonl', row 1: unknown gold_label '-'"),
        ({**RECORD, "sentence2": None}, None, r"row 1: expected 'sentence2' to be str"),
        ("{broken", None, r"dev.jsonl', row 1: no JSON"),
        ("[1]", None, r"dev.jsonl', row 1: expected an object"),
        (RECORD, [[[], "1.jpg#0r1e"]], r"dev_sgs.json' has 1 rows"),
        (RECORD, [[[], "1.jpg#0r1e"], [[], "other"]], r"dev_sgs.json', row 1: phrases of pair 'other'"),
        (RECORD, [[[], "1.jpg#0r1e"], ["dog"]], r"dev_sgs.json', row 1: expected \[phrases, pairID\]"),
        (RECORD, [[[], "1.jpg#0r1e"], [["dog"], "1.jpg#0r1e"]], r"dev_sgs.json', row 1: expected phrases as lists"),
    ],
)
def test_bad_input_names_file_and_row(tmp_path: Path, record: Any, phrases: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, [RECORD, record], phrases)


def test_predictions_come_back(tmp_path: Path) -> None:
    path, rows = str(tmp_path / entailment.RESULTS_FILE), [("1.jpg#0r1e", "neutral"), ("ü", "entailment")]
    entailment.write_results(path, rows)
    assert entailment.read_results(path) == rows
    Path(path).write_text('{"pairID": "1", "prediction": "maybe"}\n')
    with pytest.raises(InputError, match="row 0: unknown label 'maybe'"):
        entailment.read_results(path)
