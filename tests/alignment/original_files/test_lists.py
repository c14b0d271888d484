"""Predictions, ground truth and scores of AGREE: there and back, and the originals' figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.original_files.predictions import read_prediction_lines, write_prediction_lines
from alignment.original_files.scores import error_json, read_score, score_json, score_lists
from alignment.original_files.truth import karpathy_of, lists_by_query, read_truth, write_truth
from xmatch.data.captions import CaptionSet
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError

GOLDEN = Path(__file__).parents[2] / "golden" / "agree_mvptr"


def lines(path: Path, entries: list) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


TUPLES = [["9", 0.5, 0.25, 0.125], ["8", -0.5, 0.75, 0.0625]]


@pytest.mark.parametrize(
    "entries",
    [
        [{"query_id": 3, "item_ids": ["9", "8"]}, {"query_id": 1, "item_ids": ["8"]}],
        [{"image_id": "9", "item_ids": [3, 1]}, {"image_id": "8", "item_ids": []}],
        [{"query_id": 3, "item_ids": TUPLES}, {"query_id": 4, "item_ids": TUPLES[:1]}],
        [{"image_id": "flickr_1", "item_ids": [[3, 0.5, 0.25, 0.125]]}],
    ],
)
def test_lists_go_there_and_back(tmp_path: Path, entries: list) -> None:
    path = lines(tmp_path / "a", entries)
    table, key = read_prediction_lines(path)
    assert key in entries[0]
    write_prediction_lines(str(tmp_path / "b"), table, key)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_scores_of_tuples_have_columns_and_other_lists_keep_their_ids(tmp_path: Path) -> None:
    table, _ = read_prediction_lines(lines(tmp_path / "a", [{"query_id": 3, "item_ids": TUPLES}]))
    assert table.to_pylist() == [
        {
            "query_id": "3",
            "item_ids": ["9", "8"],
            "scores": [0.125, 0.0625],
            "similarities": [0.5, -0.5],
            "first_scores": [0.25, 0.75],
        }
    ]
    table, _ = read_prediction_lines(lines(tmp_path / "a", [{"query_id": 3, "item_ids": [["9", 1, 2], ["8", 3, 4]]}]))
    assert table.to_pylist() == [{"query_id": "3", "item_ids": ["9", "8"], "scores": None}]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "is empty"),
        ([{"item_ids": []}], "line 1: neither 'query_id' nor 'image_id'"),
        ([{"query_id": 1, "item_ids": []}, {"image_id": 1, "item_ids": []}], "line 2: no 'query_id', which line 1 has"),
        ([{"query_id": 1, "item_ids": [1]}, {"query_id": 2, "item_ids": ["1"]}], "mixed types in item_ids: 1 whole"),
        ([{"query_id": 1, "item_ids": []}, {"query_id": "1", "item_ids": []}], "mixed types in query_id"),
        ([{"query_id": 1, "item_ids": []}, {"query_id": 1, "item_ids": []}], "line 2: query_id '1' was in line 1"),
        ([{"query_id": 1, "item_ids": 5}], "line 1: 'item_ids' must be list, got int"),
        ([{"query_id": 1, "item_ids": [1, [2, 0, 0, 0]]}], "line 1: some items are ids and some are lists"),
        ([{"query_id": 1, "item_ids": [[]]}], "no ids: line 1 has"),
        ([{"query_id": 1, "item_ids": [[1, 2, float("nan"), 3]]}], "line 1: the item .* no finite number"),
        ([{"query_id": 1, "item_ids": [[1, 2, True, 3]]}], "line 1: the item .* no finite number"),
    ],
)
def test_bad_lists_are_named_by_line(tmp_path: Path, entries: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prediction_lines(lines(tmp_path / "a", entries))


def test_the_originals_score_in_success_and_in_failure(tmp_path: Path) -> None:
    case = json.loads((GOLDEN / "agree_evaluation.json").read_text())
    lists, truth = (
        {str(row): [str(one) for one in items] for row, items in enumerate(case[name])}
        for name in ("predictions", "ground_truth")
    )
    found = score_lists(lists, truth)
    assert score_json(found) == case["result"]
    path = str(tmp_path / "score.json")
    Path(path).write_text(json.dumps(case["result"]))
    assert read_score(path) == found
    del lists["4"]
    with pytest.raises(InputError, match=r"1 queries \('4'\) of 5 have no predictions"):
        score_lists(lists, truth)
    assert error_json(4) == case["result_when_query_4_is_missing"]
    Path(path).write_text(json.dumps(case["result_when_query_4_is_missing"]))
    with pytest.raises(InputError, match="tells of a failed evaluation: 4"):
        read_score(path)
    Path(path).write_text('{"success": true, "scoreJson": {"r1": 1}}')
    with pytest.raises(InputError, match="is no score of AGREE: 'mean_recall'"):
        read_score(path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("side", ["text", "image"])
def test_the_originals_scores_of_lists(side: str, when: str) -> None:
    case = json.loads((GOLDEN / "agree_tbr_eval_small.json").read_text())
    before = json.loads((GOLDEN / "agree_topk.json").read_text())
    lists = before[f"{side}_predictions"] if when == "before" else case[f"{side}_rerank"]
    pairs = zip(lists, case[f"gt_{side}s"], strict=True)
    found = {str(row): ([*map(str, one)], [*map(str, right)]) for row, (one, right) in enumerate(pairs)}
    score = score_lists({q: one for q, (one, _) in found.items()}, {q: right for q, (_, right) in found.items()})
    assert score_json(score) == case["evaluation"][f"{side}_{when}"]


SPLIT = CaptionSet(["9", "10"], ["", ""], ["a dog", "two dogs", "a cat"], ["0", "1", "2"], np.array([0, 0, 1]))


def test_ground_truth_goes_there_and_back(tmp_path: Path) -> None:
    texts, images = str(tmp_path / "texts"), str(tmp_path / "images")
    write_truth(texts, images, SPLIT)
    found = read_truth(texts)
    assert (found.key, found.items) == ("query_id", {"0": ["9"], "1": ["9"], "2": ["10"]})
    assert found.texts == {"0": "a dog", "1": "two dogs", "2": "a cat"}
    assert read_truth(images).items == {"9": ["0", "1"], "10": ["2"]}
    assert json.loads(Path(texts).read_text().splitlines()[0]) == {
        "query_id": 0,
        "query_text": "a dog",
        "item_ids": [9],
    }
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(karpathy_of(found, "test")))
    back = read_text_captions(str(captions), "test")
    assert back[:4] == SPLIT[:4] and back.caption_image.tolist() == SPLIT.caption_image.tolist()
    with pytest.raises(InputError, match="got that of images"):
        karpathy_of(read_truth(images), "test")


def test_ground_truth_without_lists_names_one_item(tmp_path: Path) -> None:
    path = lines(tmp_path / "a", [{"query_id": 1, "text": "7"}, {"query_id": 2, "text": "8"}])
    assert read_truth(path).items == {"1": ["7"], "2": ["8"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "is empty"),
        ([{"query_id": 1}], "no field 'text'"),
        ([{"query_id": 1, "item_ids": [1, "1"]}], "mixed types in item_ids"),
        ([{"query_id": 1, "item_ids": [1], "query_text": 5}], "'query_text' must be str"),
    ],
)
def test_bad_ground_truth_is_named_by_line(tmp_path: Path, entries: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_truth(lines(tmp_path / "a", entries))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"query_id": 1, "item_ids": [1]}, "1 captions have no query_text, the first is '1'"),
        ({"query_id": 1, "query_text": "a", "item_ids": [1, 2]}, "1 captions have not exactly one image"),
    ],
)
def test_captions_need_a_text_and_one_image(tmp_path: Path, entry: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        karpathy_of(read_truth(lines(tmp_path / "a", [entry])), "test")


def test_items_by_query(tmp_path: Path) -> None:
    table, _ = read_prediction_lines(lines(tmp_path / "a", [{"query_id": 1, "item_ids": [5, 6]}]))
    assert lists_by_query(table) == {"1": ["5", "6"]}
