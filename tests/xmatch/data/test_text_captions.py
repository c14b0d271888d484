"""Captions without photographs: plain and gzip, splits, and photographs left out in any spelling."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError


def written(path: Path) -> str:
    names = [("1000092795.jpg", "train"), ("36979.jpg", "train"), ("COCO_val2014_000000391895.jpg", "val")]
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{name} {i}", "sentid": 2 * row + i} for i in (0, 1)]}
        for row, (name, split) in enumerate(names)
    ]
    text = json.dumps({"images": images}).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("name", ["c.json", "c.json.gz"])
def test_plain_and_gzip_read_the_same(tmp_path: Path, name: str) -> None:
    found = read_text_captions(written(tmp_path / name))
    assert found.image_ids == ["1000092795", "36979", "COCO_val2014_000000391895"]
    assert found.image_paths == [""] * 3
    assert found.caption_image.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.caption_ids == list("012345") and found.captions[0] == "1000092795.jpg 0"


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["1000092795_571b08cb0e"], ["36979"]),
        (["1000092795.jpg"], ["36979"]),
        (["36979_571b08cb0e.jpg"], ["1000092795"]),
        (["36979"], ["1000092795"]),
        (["391895", "6979", "97"], ["1000092795", "36979"]),
    ],
)
def test_photographs_are_left_out_in_any_spelling(tmp_path: Path, exclude: list[str], left: list[str]) -> None:
    assert read_text_captions(written(tmp_path / "c.json"), "train", exclude).image_ids == left


def test_coco_is_left_out_by_its_number(tmp_path: Path) -> None:
    assert len(read_text_captions(written(tmp_path / "c.json"), exclude=["000000391895"]).image_ids) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bno", "not JSON within gzip"),
        (gzip.compress(b"{", mtime=0), "not JSON within gzip"),
        (gzip.compress(b'{"images": []}', mtime=0)[:-4], "not JSON within gzip"),
        (gzip.compress(b"[]", mtime=0), "list 'images'"),
        (gzip.compress(b'{"images": []}', mtime=0), "holds no captions"),
        (gzip.compress(b'{"images": [3]}', mtime=0), "image 0"),
        (gzip.compress(b'{"images": [{"filename": "a.jpg", "sentences": [{}]}]}', mtime=0), "'raw'"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.json.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text_captions(str(path))


def test_an_absent_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'dev'"):
        read_text_captions(written(tmp_path / "c.json"), "train,dev")
