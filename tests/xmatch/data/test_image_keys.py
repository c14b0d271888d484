"""One photograph has one key, and a bare short number has none."""

from __future__ import annotations

import pytest

from xmatch.data.image_keys import image_key


@pytest.mark.parametrize(
    ("image_id", "path", "key"),
    [
        ("COCO_val2014_000000391895", "", "coco:391895"),
        ("COCO_train2014_000000391895.jpg", "", "coco:391895"),
        ("val2014/COCO_val2014_000000391895", "", "coco:391895"),
        ("train2014_391895", "", "coco:391895"),
        ("coco_391895", "", "coco:391895"),
        ("000000391895", "", "coco:391895"),
        ("391895", "/d/val2014/391895.jpg", "coco:391895"),
        ("391895", "/d/images/COCO_val2014_000000391895.jpg", "coco:391895"),
        ("391895", "/d/a.tar#train2017/391895.jpg", "coco:391895"),
        ("1000268201_693b08cb0e", "/d/1000268201_693b08cb0e.jpg", "number:1000268201"),
        ("1000268201", "", "number:1000268201"),
        ("36979_693b08cb0e", "", "number:36979"),
        ("1234567", "", "number:1234567"),
        ("Dog on Beach", "", "name:Dog on Beach"),
        ("a.jpg", "", "name:a"),
    ],
)
def test_spellings(image_id: str, path: str, key: str) -> None:
    assert image_key(image_id, path) == key


@pytest.mark.parametrize(
    ("image_id", "path"),
    [
        ("391895", ""),
        ("391895", "/d/coco_precomp/391895.jpg"),
        ("12", "/d/images/COCO_val2014_000000391895.jpg"),
        ("0", "/d/val2014/0.jpg"),
        ("000000000000", ""),
        ("000000012", ""),  # a row of img2dataset
        ("0012345678", ""),
        ("123456789012", ""),
        ("img_12", ""),
        ("page-003.png", ""),
        ("test:17", ""),
        ("", ""),
        (".jpg", ""),
    ],
)
def test_what_says_nothing_outside_its_data_set(image_id: str, path: str) -> None:
    assert image_key(image_id, path) is None


def test_rows_with_a_checksum_are_not_flickr_photographs() -> None:
    assert image_key("1234567_3456789012") == "name:1234567_3456789012"
