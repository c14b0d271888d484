"""Captions with entities, and names of objects: there and back, and what is not in its caption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.entities.entity_tables import check_entities, entity_table
from alignment.original_files.captions import (
    locate,
    read_segs,
    read_train,
    read_val,
    write_segs,
    write_train,
    write_val,
)
from alignment.original_files.json_lines import read_lines
from alignment.original_files.objects import object_table, region_table, write_objects, write_regions
from xmatch.data.captions import read_captions
from xmatch.errors import InputError

TRAIN = [
    {
        "image": "flickr30k-images/1000092795.jpg",
        "caption": "Two young men on a lawn .",
        "image_id": 0,
        "segs": ["two young men", "a lawn"],
        "preds": [{"object": 0.51}, {"a lawn": 0.75}],
    },
    {
        "image": "flickr30k-images/10002456.jpg",
        "caption": "İstanbul's men and a dog.",
        "image_id": 1,
        "segs": ["a dog", "dog"],
        "preds": [],
    },
    {
        "image": "flickr30k-images/1000092795.jpg",
        "caption": "Two friends",
        "image_id": 0,
        "segs": [],
        "preds": [{"friends": 1}],
    },
]


def lines(path: Path, entries: list) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_the_training_file_goes_there_and_back(tmp_path: Path) -> None:
    found = read_train(lines(tmp_path / "a", TRAIN))
    assert found.not_in_caption == []
    table = entity_table(found.entities)
    check_entities(table, "train")
    assert [(one.caption_id, one.image_id) for one in found.entities] == [
        ("0", "1000092795"),
        ("1", "10002456"),
        ("2", "1000092795"),
    ]
    assert found.entities[0].entities[0] == ("Two young men", 0, 13)
    write_train(str(tmp_path / "b"), found.karpathy, found.entities, found.grounded)
    back = [json.loads(line) for line in (tmp_path / "b").read_text().splitlines()]
    assert back == TRAIN
    for image in found.karpathy["images"]:
        (tmp_path / "flickr30k-images").mkdir(exist_ok=True)
        (tmp_path / "flickr30k-images" / image["filename"]).touch()
    (tmp_path / "c.json").write_text(json.dumps(found.karpathy))
    captions = read_captions(str(tmp_path / "c.json"), str(tmp_path), "train")
    assert captions.image_ids == ["1000092795", "10002456"]
    assert captions.caption_ids == ["0", "2", "1"]


def test_entities_that_are_not_in_their_caption_are_told(tmp_path: Path) -> None:
    wrong = [TRAIN[0] | {"segs": ["a lawn", "a cat", ""]}]
    found = read_train(lines(tmp_path / "a", wrong))
    assert [entity.text for entity in found.entities[0].entities] == ["a lawn"]
    assert len(found.not_in_caption) == 2
    assert "a', line 1: entity 'a cat' is not in caption 'Two young men on a lawn .'" in found.not_in_caption[0]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=20), st.text(min_size=1, max_size=5), st.text(max_size=20))
def test_what_is_found_is_there(before: str, text: str, after: str) -> None:
    caption = before + text + after
    found = locate(caption, text)
    if text.strip():
        assert found is not None and caption[found.start : found.end] == found.text
    else:
        assert found is None


def test_whole_words_come_before_parts_of_words() -> None:
    assert locate("A manx and a man", "man") == ("man", 13, 16)
    assert locate("A manx", "MAN") == ("man", 2, 5)
    assert locate("A cat", "man") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": 5}, "line 2: 'caption' must be str, got int"),
        ({"segs": ["a", 1]}, "line 2: 'segs' must hold texts"),
        ({"preds": [{"a": 0.1, "b": 0.2}]}, "line 2: 'preds' must hold objects of one entity"),
        ({"preds": [{"a": "0.1"}]}, "line 2: 'preds' must hold"),
        ({"image_id": "1"}, "mixed types in image_id: 1 whole numbers and 1 texts"),
        ({"image": TRAIN[0]["image"], "image_id": 7}, "line 2: image .* has the image_id 7, and 0 before"),
    ],
)
def test_bad_lines_of_the_training_file_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_train(lines(tmp_path / "a", [TRAIN[0], TRAIN[1] | change]))


def test_the_validation_list_goes_there_and_back(tmp_path: Path) -> None:
    entries = [
        {"image": "flickr30k-images/5.jpg", "caption": ["a", "b"]},
        {"image": "7.jpg", "caption": ["c"]},
    ]
    (tmp_path / "a").write_text(json.dumps(entries))
    found = read_val(str(tmp_path / "a"))
    assert [image["imgid"] for image in found.karpathy["images"]] == ["0", "1"]
    assert [s["sentid"] for image in found.karpathy["images"] for s in image["sentences"]] == ["0", "1", "2"]
    assert write_val(str(tmp_path / "b"), found.karpathy) == 2
    assert json.loads((tmp_path / "b").read_text()) == entries
    for bad in ('{"a": 1}', '[{"image": "x", "caption": "one"}]', '[{"caption": ["one"]}]'):
        (tmp_path / "a").write_text(bad)
        with pytest.raises(InputError, match="entry 0|must hold a list"):
            read_val(str(tmp_path / "a"))


def test_test_entities_go_there_and_back(tmp_path: Path) -> None:
    entries = [
        {"query_id": 4, "query_text": "A dog runs", "items": ["a dog", "dog"]},
        {"query_id": 9, "query_text": "Rain", "items": []},
    ]
    path = lines(tmp_path / "a", entries)
    found, missing = read_segs(path, {"4": ["7"], "9": ["8"]})
    assert missing == [] and [one.image_id for one in found] == ["7", "8"]
    assert write_segs(str(tmp_path / "b"), found) == 2
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(InputError, match="line 2: caption '9' is not in the ground truth"):
        read_segs(path, {"4": ["7"]})


def test_names_of_objects_go_there_and_back(tmp_path: Path) -> None:
    entries = [{"image_id": "12", "image_objects": ["dog", "ball"]}, {"image_id": "7", "image_objects": []}]
    path = lines(tmp_path / "a", entries)
    write_objects(str(tmp_path / "b"), object_table(read_lines(path), path))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    bad = lines(tmp_path / "c", [entries[0], {"image_id": 7, "image_objects": []}])
    with pytest.raises(InputError, match="mixed types in image_id"):
        object_table(read_lines(bad), bad)


def test_regions_of_names_go_there_and_back(tmp_path: Path) -> None:
    region = {"x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"]}
    entries = [
        {"vocab": "dog", "objects": [{"image_id": 5, "object": [region, [1, 2]]}, {"image_id": 6, "object": []}]},
        {"vocab": "unseen", "objects": []},
    ]
    path = lines(tmp_path / "a", entries)
    table = region_table(read_lines(path), path)
    assert table.column("name").to_pylist() == ["dog", "dog", "unseen"]
    write_regions(str(tmp_path / "b"), table)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    for change, message in (
        ({"objects": [{"image_id": 5}]}, "line 2: no field 'object'"),
        ({"objects": [{"image_id": "x", "object": []}]}, "mixed types in image_id"),
        ({"vocab": "dog"}, "line 2: vocab 'dog' was in line 1"),
    ):
        bad = lines(tmp_path / "c", [entries[0], entries[1] | change])
        with pytest.raises(InputError, match=message):
            region_table(read_lines(bad), bad)
