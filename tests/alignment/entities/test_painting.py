"""Painted images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alignment.entities.entity_tables import Box, box_table, check_boxes
from alignment.entities.painting import mean_colour, paint, pixel_box, random_square

sides = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.001, 1), st.floats(0.001, 1))


def box_of(values: tuple[float, float, float, float]) -> Box:
    x, y, w, h = values
    return Box("i", "p", "s", x, y, min(1.0, x + w), min(1.0, y + h), 1.0)


@given(sides, st.integers(1, 40), st.integers(1, 40))
def test_a_box_has_whole_pixels_inside_the_image(values: tuple, width: int, height: int) -> None:
    box = box_of(values)
    left, upper, right, lower = pixel_box(box, width, height)
    assert 0 <= left < right <= width and 0 <= upper < lower <= height
    assert left <= box.x1 * width and right >= min(width, box.x2 * width)


@given(st.lists(sides, max_size=4))
def test_only_boxes_are_painted(values: list) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (9, 13, 3)).astype(np.uint8)
    image, boxes = Image.fromarray(pixels), [box_of(one) for one in values]
    is_inside = np.zeros((9, 13), bool)
    for box in boxes:
        left, upper, right, lower = pixel_box(box, 13, 9)
        is_inside[upper:lower, left:right] = True
    painted = paint(image, boxes, (0, 0, 0))
    assert (np.asarray(painted)[is_inside] == 0).all()
    assert (np.asarray(painted)[~is_inside] == pixels[~is_inside]).all()
    assert (np.asarray(image) == pixels).all()
    assert paint(painted, boxes, (0, 0, 0)).tobytes() == painted.tobytes()


def test_the_mean_colour_is_near_zero_for_the_tower() -> None:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    seen = (np.array(mean_colour(mean.tolist())) / 255 - mean) / std
    assert (np.abs(seen) <= 0.5 / 255 / std + 1e-9).all()


def test_a_grey_image_is_a_defect() -> None:
    with pytest.raises(ValueError, match="RGB"):
        paint(Image.new("L", (2, 2)), [], (0, 0, 0))


@given(st.integers(0, 999))
def test_random_squares_are_boxes_of_the_originals_size(seed: int) -> None:
    box = random_square(np.random.default_rng(seed), "i")
    check_boxes(box_table([box]), "here")
    left, upper, right, lower = pixel_box(box, 224, 224)
    assert right - left in range(1, 34) and lower - upper in range(1, 34)
    assert box == random_square(np.random.default_rng(seed), "i")
