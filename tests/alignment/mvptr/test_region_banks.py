"""Regions from several places: how an image's id is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mvptr_data import regions_of

from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.regions.region_tsv import write_mvptr
from alignment.mvptr.regions.table import write_regions
from xmatch.errors import InputError


def bank(folder: Path, name: str, ids: list[str]) -> str:
    path = str(folder / f"{name}.arrow")
    write_regions(path, [regions_of(row)._replace(image_id=one) for row, one in enumerate(ids)])
    return path


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("1000092795", "1000092795"),
        ("flickr30k_1000092795", "1000092795"),
        ("1000092795.jpg", "1000092795"),
        ("391895", "COCO_val2014_000000391895"),
        ("COCO_train2014_000000391895", "COCO_val2014_000000391895"),
        ("000000391895", "COCO_val2014_000000391895"),
    ],
)
def test_an_image_is_found_in_any_spelling(tmp_path: Path, asked: str, kept: str) -> None:
    banks = RegionBanks([bank(tmp_path, "a", ["1000092795", "COCO_val2014_000000391895"])])
    assert banks.name_of(asked) == kept
    assert banks.take(kept).image_id == kept


def test_the_first_place_that_has_an_image_counts(tmp_path: Path) -> None:
    one, other = bank(tmp_path, "a", ["x", "y"]), bank(tmp_path, "b", ["y", "z"])
    banks = RegionBanks([one, other])
    np.testing.assert_array_equal(banks.take("y").features, RegionBanks([one]).take("y").features)
    assert banks.take("z").image_id == "z"


def test_tables_and_tsv_of_one_width_go_together(tmp_path: Path) -> None:
    wide = regions_of(3)._replace(image_id="t")
    write_mvptr(str(tmp_path / "tsv"), [wide])
    banks = RegionBanks([str(tmp_path / "tsv" / "predictions.tsv")])
    assert banks.width == 16  # the tool writes the six numbers of the boxes behind
    with pytest.raises(InputError, match="regions have 10 numbers, but the model reads 16"):
        RegionBanks([str(tmp_path / "tsv" / "predictions.tsv"), bank(tmp_path, "a", ["x"])])


def test_what_is_missing_or_not_clear_is_named(tmp_path: Path) -> None:
    banks = RegionBanks([bank(tmp_path, "a", ["set_7", "other_7"])])
    with pytest.raises(InputError, match=r"'my.json', row 1: image '7' may be several"):
        banks.names_of(["set_7", "7"], "my.json")
    with pytest.raises(
        InputError, match=r"'my.json', row 0: .*no regions of image 'nowhere'; its ids are such as 'set_7'"
    ):
        banks.names_of(["nowhere"], "my.json")
    with pytest.raises(InputError, match="no regions are given"):
        RegionBanks([])
    with pytest.raises(InputError, match=r"row 0: regions have 10 numbers, but the model reads 12"):
        RegionBanks([bank(tmp_path, "b", ["x"])], width=12)
