"""Referring expressions: overlaps, choices, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mvptr_cases import golden

from alignment.mvptr.tasks import refexp
from xmatch.errors import InputError

RECORD = {"id": 5, "sentence": "the left dog", "image_id": 42, "bbox": [1, 2, 10, 20.5]}
BOXES = arrays(np.float32, (3, 4), elements=st.floats(0, 64, width=16)).map(
    lambda one: np.concatenate([one[:, :2], one[:, :2] + one[:, 2:]], 1)
)


def test_expressions_can_be_read_without_their_boxes(tmp_path: Path) -> None:
    path = tmp_path / "ve_splits.json"
    nameless = {name: value for name, value in RECORD.items() if name != "bbox"}
    path.write_text(json.dumps({"train": [RECORD, nameless, {**RECORD, "bbox": "left"}]}))
    found = refexp.read_expressions(str(path), "train", with_boxes=False)
    assert [(one.text, one.image_id, one.box) for one in found] == [("the left dog", "42", None)] * 3
    with pytest.raises(InputError, match="train row 1: expected 'bbox' to be list"):
        refexp.read_expressions(str(path), "train")


def test_overlaps_are_the_originals() -> None:
    case = golden("re_head")
    boxes = np.array(case["iou_boxes_xyxy"], np.float32)
    np.testing.assert_allclose(refexp.overlaps(boxes, boxes), case["iou"], rtol=1e-6)


def test_the_choice_of_a_region_is_the_originals() -> None:
    case = golden("re_head")
    labels, scores = np.array(case["labels_iou"], np.float32), np.array(case["mod1_layerNone"]["logits"])
    chosen = [refexp.chosen_overlap(*row) for row in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(chosen, case["re_score_mod1"])


def test_the_choice_of_a_detection_is_the_originals() -> None:
    case = golden("re_head")["det_case"]
    there = np.array(case["labels"]) >= 0
    scores, table = np.array(case["logits"])[there], np.array(case["iou_mat"], np.float32)
    for rule, name in (("best_region", "det1"), ("weighted", "det2")):
        assert case["det_labels"][refexp.chosen_detection(scores, table, rule)] == case[name]


@settings(deadline=None)
@given(BOXES, BOXES)
def test_overlap_is_symmetric_and_a_share(one: np.ndarray, other: np.ndarray) -> None:
    found = refexp.overlaps(one, other)
    np.testing.assert_allclose(found, refexp.overlaps(other, one).T, atol=1e-6)
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()
    own = np.diag(refexp.overlaps(one, one))
    has_area = ((one[:, 2:] - one[:, :2]).prod(1)) > 0
    np.testing.assert_allclose(own[has_area], 1.0, rtol=1e-5)


@settings(deadline=None)
@given(BOXES, st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5))
def test_no_choice_beats_the_recall_bound(boxes: np.ndarray, scores: list[float]) -> None:
    labels = refexp.region_labels([0.0, 0.0, 30.0, 30.0], boxes, 5)
    assert (labels[3:] == -1).all() and (labels[:3] >= 0).all()
    found = refexp.chosen_overlap(np.array(scores), labels)
    assert refexp.accuracy([found]) <= refexp.recall_bound([labels])


def test_regions_beyond_the_models_places_are_not_seen() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 10, 10]], np.float32)
    assert refexp.recall_bound([refexp.region_labels([0, 0, 10, 10], boxes, 1)]) == 0.0
    assert refexp.recall_bound([refexp.region_labels([0, 0, 10, 10], boxes, 2)]) == 100.0
    assert refexp.chosen_overlap(np.ones(3), np.full(3, -1, np.float32)) == 0.0


def read(folder: Path, *records: Any, split: str = "val") -> Any:
    (folder / "ve_splits.json").write_text(json.dumps({"val": list(records)}))
    return refexp.read_expressions(str(folder / "ve_splits.json"), split)


def test_expressions_are_read(tmp_path: Path) -> None:
    [found] = read(tmp_path, RECORD)
    assert (found.id, found.image_id, found.text, found.box) == ("5", "42", "the left dog", [1.0, 2.0, 11.0, 22.5])
    assert list(found.phrases) == []


@pytest.mark.parametrize(
    ("box", "split", "message"),
    [
        ([1, 2, 3], "val", r"ve_splits.json', val row 1: expected a box \[x, y, width, height\]"),
        ([1, 2, 0, 5], "val", r"val row 1: expected a box"),
        ([1, 2, float("nan"), 5], "val", r"val row 1: expected a box"),
        (["1", 2, 3, 5], "val", r"val row 1: expected a box"),
        ([1, 2, 3, 5], "testA", r"has no list 'testA'; it has val"),
    ],
)
def test_bad_input_names_file_and_row(tmp_path: Path, box: Any, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, RECORD, {**RECORD, "bbox": box}, split=split)


def test_detections_are_read_by_image(tmp_path: Path) -> None:
    path = tmp_path / "dets.json"
    path.write_text(
        json.dumps([{"image_id": 42, "box": [0, 0, 2, 2]}, {"image_id": 42, "box": [1, 1, 4, 4], "det_id": 7}])
    )
    np.testing.assert_array_equal(refexp.read_detections(str(path))["42"], [[0, 0, 2, 2], [1, 1, 5, 5]])
    path.write_text(json.dumps([{"image_id": 42, "box": [0, 0, -2, 2]}]))
    with pytest.raises(InputError, match="row 0: expected a box"):
        refexp.read_detections(str(path))


def test_predictions_come_back(tmp_path: Path) -> None:
    path, rows = str(tmp_path / refexp.RESULTS_FILE), [("5", [1.0, 2.0, 11.0, 22.5], 0.25)]
    refexp.write_results(path, rows)
    assert refexp.read_results(path) == rows
    Path(path).write_text("{\n")
    with pytest.raises(InputError, match="row 0: no JSON"):
        refexp.read_results(path)
