"""Where regions lie, from every form that may say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data.feature_sets import FeatureSets
from xmatch.data.region_files import ImageRegions, regions_to_vectors
from xmatch.data.region_places import position_code
from xmatch.data.vectors import make_vectors, read_vectors, write_vectors
from xmatch.errors import InputError

SIZES = {"a": (3, (200, 100)), "b": (1, (50, 80)), "c": (2, (64, 64))}
"""Regions of each image, and its width and height."""


def images(*, known: bool = True) -> list[ImageRegions]:
    draw, found = np.random.default_rng(5), []
    for name, (count, (width, height)) in SIZES.items():
        corners = np.sort(draw.uniform(0, 1, size=(count, 2, 2)), axis=1) * np.array([width, height])
        boxes, features = corners.reshape(count, 4), draw.normal(size=(count, 4))
        size = (width, height) if known else (0, 0)
        found.append(ImageRegions(name, boxes.astype(np.float32), features.astype(np.float32), *size))
    return found


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-2, 100), st.integers(1, 5))
def test_a_code_does_not_change_when_the_image_is_scaled(factor: float, count: int) -> None:
    draw = np.random.default_rng(count)
    boxes, sizes = np.sort(draw.uniform(1, 90, size=(count, 2, 2)), axis=1).reshape(count, 4), np.array([100, 120])
    code = position_code(boxes, sizes)
    np.testing.assert_allclose(position_code(boxes * factor, sizes * factor), code, rtol=1e-4)
    np.testing.assert_allclose(code[:, 5], code[:, 2] * code[:, 3], rtol=1e-4)


def test_the_whole_image_and_a_box_without_height() -> None:
    code = position_code(np.array([[0, 0, 200, 100], [10, 50, 30, 50]]), np.array([200, 100]))
    np.testing.assert_allclose(code[0], [0, 0, 1, 1, 2, 1])
    np.testing.assert_allclose(code[1], [0.05, 0.5, 0.1, 0, 20, 0])


@pytest.mark.parametrize("files", [1, 3])
def test_a_bank_and_arrays_say_the_same(tmp_path: Path, files: int) -> None:
    regions = images()
    for number, part in enumerate(np.array_split(np.arange(3), files)):
        write_vectors(str(tmp_path / "bank" / f"{number}.arrow"), regions_to_vectors([regions[i] for i in part]))
    sets = FeatureSets.from_bank(str(tmp_path / "bank"))
    codes = sets.take_positions(sets.require(["c", "a"])[:, 0])
    assert codes.shape == (2, 3, 6)
    assert not codes[0, 2].any()
    for row, image in ((0, regions[2]), (1, regions[0])):
        expected = position_code(image.boxes, np.array([image.width, image.height]))
        np.testing.assert_allclose(codes[row, : len(expected)], expected)
        whole = FeatureSets.from_array(
            image.features[None], ["x"], "here", image.boxes[None], np.array([[image.width, image.height]])
        )
        np.testing.assert_allclose(whole.take_positions(np.array([0]))[0], expected)


def test_every_fifth_row_of_a_redundant_file_has_its_own_boxes() -> None:
    draw = np.random.default_rng(1)
    features = np.repeat(draw.normal(size=(3, 2, 4)), 5, axis=0)[::5]
    boxes = np.tile(np.array([0, 0, 10, 20]), (3, 2, 1)) * np.arange(1, 4)[:, None, None]
    sets = FeatureSets.from_array(features, ["a", "b", "c"], "here", boxes, np.full((3, 2), 60))
    np.testing.assert_allclose(sets.take_positions(np.array([2, 0]))[:, 0, 2], [0.5, 10 / 60])


def test_unknown_places_are_missed_by_name(tmp_path: Path) -> None:
    write_vectors(str(tmp_path / "bare.arrow"), regions_to_vectors(images(known=False)))
    assert "image_size" not in read_vectors(str(tmp_path / "bare.arrow")).column_names
    sets = FeatureSets.from_bank(str(tmp_path / "bare.arrow"))
    with pytest.raises(InputError, match=r"bare\.arrow.*does not say where its regions lie"):
        sets.take_positions(np.array([0]))


def test_a_bank_whose_files_do_not_all_know_the_sizes_is_read_without(tmp_path: Path) -> None:
    first, second = images()[:1], images(known=False)[1:]
    write_vectors(str(tmp_path / "bank" / "0.arrow"), regions_to_vectors(first))
    write_vectors(str(tmp_path / "bank" / "1.arrow"), regions_to_vectors(second))
    sets = FeatureSets.from_bank(str(tmp_path / "bank"))
    assert sets.take(np.array([0, 1])).mask.sum() == 4
    with pytest.raises(InputError, match="does not say"):
        sets.take_positions(np.array([0]))


def test_boxes_of_another_image_are_found_out() -> None:
    features, boxes = np.zeros((2, 1, 4)), np.array([[[0, 0, 10, 10]], [[0, 0, 90, 10]]])
    for size in (0, 50):
        bad = boxes * np.nan if size else boxes
        sets = FeatureSets.from_array(features, ["a", "b"], "split", bad, np.full((2, 2), size))
        with pytest.raises(InputError, match="of image 'a'"):
            sets.take_positions(np.array([0]))
    sets = FeatureSets.from_array(features, ["a", "b"], "split", boxes, np.full((2, 2), 50))
    assert sets.take_positions(np.array([0])).shape == (1, 1, 6)
    with pytest.raises(InputError, match="'split': a box of image 'b' passes"):
        sets.take_positions(np.array([0, 1]))


def test_sizes_are_counted_and_kept(tmp_path: Path) -> None:
    vectors = np.zeros((2, 3), np.float32)
    table = make_vectors(["a", "b"], vectors, image_sizes=np.array([[4, 5], [6, 7]], np.float32))
    write_vectors(str(tmp_path / "x.arrow"), table)
    assert read_vectors(str(tmp_path / "x.arrow")).column("image_size").to_pylist() == [[4, 5], [6, 7]]
    assert make_vectors(["a", "b"], vectors).schema.get_field_index("image_size") == -1
    with pytest.raises(InputError, match="image sizes"):
        make_vectors(["a", "b"], vectors, image_sizes=np.zeros((1, 2), np.float32))
    assert pa.types.is_fixed_size_list(table.schema.field("image_size").type)
