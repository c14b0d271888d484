"""Boxes of Visual Genome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.entities.entity_tables import check_boxes
from alignment.entities.visual_genome import BoxCounts, json_entries, read_visual_genome
from xmatch.errors import InputError

SIZES = [{"image_id": 1, "width": 100, "height": 50, "url": "u"}, {"image_id": 2, "width": 10, "height": 10}]
OBJECTS = [
    {"image_id": 1, "objects": [
        {"object_id": 9, "names": ["Tree ", "oak"], "x": 10, "y": 5, "w": 20, "h": 25, "synsets": []},
        {"object_id": 8, "names": ["sky"], "x": -5, "y": 0, "w": 200, "h": 10},
        {"object_id": 7, "names": ["far"], "x": 100, "y": 0, "w": 5, "h": 10},
        {"object_id": 6, "names": [" "], "x": 0, "y": 0, "w": 5, "h": 10},
    ]},
    {"image_id": 2, "objects": []},
]  # fmt: skip


def read(folder: Path, objects: object, sizes: object = SIZES):
    for name, content in (("objects.json", objects), ("image_data.json", sizes)):
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (folder / name).write_text(text)
    return read_visual_genome(str(folder / "objects.json"), str(folder / "image_data.json"), "vg/")


def test_objects_become_boxes(tmp_path: Path) -> None:
    table, counts = read(tmp_path, OBJECTS)
    check_boxes(table, "here")
    assert counts == BoxCounts(images=1, boxes=3, clipped=1, outside=1, unnamed=1)
    rows = table.to_pylist()
    assert [(row["image_id"], row["phrase"], row["source"]) for row in rows] == [
        ("vg/1", "tree", "visual_genome"),
        ("vg/1", "oak", "visual_genome"),
        ("vg/1", "sky", "visual_genome"),
    ]
    assert [rows[0][side] for side in ("x1", "y1", "x2", "y2")] == pytest.approx([0.1, 0.1, 0.3, 0.6])
    assert [rows[2][side] for side in ("x1", "y1", "x2", "y2", "score")] == pytest.approx([0, 0, 1, 0.2, 1])


def test_regions_become_boxes(tmp_path: Path) -> None:
    region = {"region_id": 3, "image_id": 2, "phrase": "A  red\ndoor", "x": 1, "y": 2, "width": 3, "height": 4}
    table, counts = read(tmp_path, [{"id": 2, "regions": [region]}])
    assert table.column("phrase").to_pylist() == ["a red door"]
    assert counts.boxes == 1


@pytest.mark.parametrize(
    ("objects", "sizes", "message"),
    [
        ([{"image_id": 3, "objects": []}], SIZES, "entry 0: image '3' has no size"),
        ([{"image_id": 1}], SIZES, "entry 0 has no list `objects` or `regions`"),
        ([{"image_id": None, "objects": []}], SIZES, "image_id None is neither"),
        ([{"image_id": 1, "objects": [{"names": ["a"], "x": 1, "y": 2, "w": "3", "h": 4}]}], SIZES, "object 0: box"),
        (
            [{"image_id": 1, "objects": [{"names": ["a"], "x": float("nan"), "y": 2, "w": 3, "h": 4}]}],
            SIZES,
            "object 0",
        ),
        ([{"image_id": 1, "objects": [{"names": "a"}]}], SIZES, "object 0: expected `names`"),
        ({"image_id": 1}, SIZES, "is no JSON list"),
        ('[{"image_id": 1, "objects": []}, {"image', SIZES, "entry 1: .* may be cut off"),
        ([], [{"image_id": 1, "width": 0, "height": 1}], "image 1 of 0 x 1 pixels"),
        ([], [{"image_id": 1}], "entry 0: expected image_id, width and height"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, objects: object, sizes: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, objects, sizes)


def test_entries_are_those_of_the_json(tmp_path: Path) -> None:
    content = [1, {"a": [1, "]"]}, "x,]", [], None]
    for indent in (None, 2):
        (tmp_path / "l.json").write_text(json.dumps(content, indent=indent))
        assert list(json_entries(str(tmp_path / "l.json"))) == content
