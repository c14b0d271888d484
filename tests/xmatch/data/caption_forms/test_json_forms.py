from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xmatch.data.captions import form_of, read_captions
from xmatch.errors import InputError


def coco_json(path: Path, **changes: Any) -> str:
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 9, "file_name": "c.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "one"},
            {"id": 2, "image_id": 7, "caption": "two"},
            {"id": 5, "image_id": 3, "caption": "three"},
        ],
    }
    path.write_text(json.dumps(content | changes))
    return str(path)


def test_coco_captions_keep_annotation_ids_and_the_files_order(tmp_path: Path, image_folder: str) -> None:
    path = coco_json(tmp_path / "captions_val.json")
    found = read_captions(path, image_folder, "any")
    assert form_of(path)[0] == "coco"
    assert found.image_ids == ["b", "a"]  # the third has no caption
    assert found.caption_ids == ["2", "1", "5"]
    assert found.caption_image.tolist() == [0, 1, 1]
    assert found.image_paths[1] == f"{image_folder}/a.jpg"
    assert found.bad_rows == 0


def test_official_coco_names_are_found_in_the_official_folders(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000042.jpg"
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    (tmp_path / "images" / "val2014" / name).write_bytes(b"")
    annotations = [{"id": 1, "image_id": 42, "caption": "x"}]
    path = coco_json(tmp_path / "c.json", images=[{"id": 42, "file_name": name}], annotations=annotations)
    assert read_captions(path, str(tmp_path), "").image_paths == [f"{tmp_path}/images/val2014/{name}"]


def test_a_blank_coco_caption_is_counted_with_its_row(tmp_path: Path, image_folder: str) -> None:
    annotations = [{"id": 1, "image_id": 3, "caption": " "}, {"id": 2, "image_id": 3, "caption": "x"}]
    found = read_captions(coco_json(tmp_path / "c.json", annotations=annotations), image_folder, "")
    assert found.captions == ["x"]
    assert found.bad_rows == 1
    assert "c.json" in found.first_bad[0] and "annotation 0" in found.first_bad[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"id": 1, "image_id": 4, "caption": "x"}]}, "annotation 0: its image 4"),
        ({"annotations": [{"id": 1, "image_id": 3, "bbox": []}]}, "annotation 0.*captions file"),
        ({"images": [{"id": 1}]}, "image 0.*file_name"),
        ({"images": [{"id": 3, "file_name": "a.jpg"}] * 2}, "image 1: id 3 was there before"),
        ({"images": [{"id": 3, "file_name": "../a.jpg"}]}, "its image 7"),
        ({"annotations": []}, "no captions"),
    ],
)
def test_bad_coco_files_are_named(tmp_path: Path, image_folder: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_captions(coco_json(tmp_path / "c.json", **changes), image_folder, "")
    assert "c.json" in str(error.value)


def test_a_coco_name_cannot_leave_the_folder(tmp_path: Path, image_folder: str) -> None:
    images = [{"id": 3, "file_name": "../a.jpg"}]
    annotations = [{"id": 1, "image_id": 3, "caption": "x"}]
    with pytest.raises(InputError, match="would leave"):
        read_captions(coco_json(tmp_path / "c.json", images=images, annotations=annotations), image_folder, "")


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        ({"images": [{"filename": "a.jpg", "split": "x", "sentences": [{"raw": "one"}, {"raw": ""}, {"raw": 3}]}]}, 2),
        ([{"img_id": "a", "sentf": {"mscoco": ["one", " ", None]}}], 2),
    ],
)
def test_captions_that_are_no_text_are_counted(tmp_path: Path, image_folder: str, content: Any, bad: int) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    found = read_captions(str(path), image_folder, "x")
    assert found.captions == ["one"]
    assert found.bad_rows == bad and "c.json" in found.first_bad[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [3]}, "image 0.*expected an object"),
        ({"images": [{"filename": "a.jpg", "sentences": []}]}, "no split 'x'; it has None"),
        ({"images": [{"filename": 3, "split": "x", "sentences": []}]}, "image 0"),
        ({"images": [{"filename": "a.jpg", "split": "x", "sentences": ["one"]}]}, "image 0"),
        ([3], "entry 0"),
        ([{"img_id": "a", "sentf": {"mscoco": "one"}}], "entry 0: expected a list"),
        ([{"img_id": "../a", "sentf": {"mscoco": ["one"]}}], "would leave"),
        ([{"img_id": "a", "sentf": {"mscoco": [""]}}], "All 1 rows are bad"),
    ],
)
def test_hostile_json_stops_by_name(tmp_path: Path, image_folder: str, content: Any, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_captions(str(path), image_folder, "x")
