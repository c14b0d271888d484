"""The table of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_regions import same, some_regions

from alignment.mvptr.regions.table import RegionTable, write_regions
from xmatch.data.feature_sets import FeatureSets
from xmatch.data.region_files import regions_to_vectors
from xmatch.data.vectors import write_vectors
from xmatch.errors import InputError


def test_what_is_written_is_taken_by_image(tmp_path: Path) -> None:
    written = some_regions()
    path = str(tmp_path / "r.arrow")
    assert write_regions(path, written) == 3
    table = RegionTable(path)
    assert [name in table for name in ("imagé1", "x")] == [True, False] and len(table) == 3
    assert same(table.take("imagé1"), written[1])
    assert all(same(a, b) for a, b in zip(table, written, strict=True))
    table.require(["imagé0", "imagé2"], 5)
    with pytest.raises(InputError, match="row 0: regions have 5 numbers, but the model reads 2054"):
        table.require(["imagé0"], 2054)
    with pytest.raises(InputError, match="lacks regions of 1 of 2 images, the first is 'x'"):
        table.require(["imagé0", "x"])
    with pytest.raises(InputError, match="no regions of image 'x'"):
        table.take("x")


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    bare = some_regions(2)
    bare[1] = bare[1]._replace(boxes=np.zeros((0, 4), np.float32), width=0, height=0, tags=(), scores=None)
    path = str(tmp_path / "r.arrow")
    write_regions(path, bare)
    found = RegionTable(path).take("imagé1")
    assert same(found, bare[1]) and found.labels is not None


def test_it_is_a_bank_that_other_models_read(tmp_path: Path) -> None:
    written = some_regions()
    write_regions(str(tmp_path / "a.arrow"), written[:2])
    write_regions(str(tmp_path / "b.arrow"), written[2:])
    bank = FeatureSets.from_bank(str(tmp_path))
    assert np.array_equal(bank.take(bank.require(["imagé2"])[0]).features[0], written[2].features)
    assert all(same(a, b) for a, b in zip(RegionTable(str(tmp_path)), written, strict=True))


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "r.arrow")
    with pytest.raises(InputError, match="comes twice"):
        write_regions(path, [*some_regions(1), *some_regions(1)])
    rows = regions_to_vectors(some_regions(2))
    write_vectors(path, rows.take([0, 4, 1]))
    with pytest.raises(InputError, match="row 2: the rows of image 'imagé0' are not side by side"):
        RegionTable(path)
    with pytest.raises(InputError, match="does not exist"):
        RegionTable(str(tmp_path / "none.arrow"))
