"""Boxes painted over when an image is loaded, so that no archive of masked copies is needed (AGREE keeps one)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from alignment.entities.entity_tables import Box

Colour = tuple[int, int, int]
SQUARE = 32
"""Largest side of AGREE's random square, in pixels of the image that the tower sees."""


def mean_colour(mean: Sequence[float]) -> Colour:
    """The colour that an image tower's normalisation takes to zero, within half a step of 8 bits.

    Args:
        mean: of the three channels, between 0 and 1, as the tower subtracts it.
    """
    red, green, blue = (round(255 * min(1.0, max(0.0, value))) for value in mean)
    return red, green, blue


def pixel_box(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The smallest rectangle of whole pixels that holds a box: left, upper, right, lower, the last two past it."""
    left, upper = math.floor(box.x1 * width), math.floor(box.y1 * height)
    right, lower = math.ceil(box.x2 * width), math.ceil(box.y2 * height)
    return left, upper, min(width, max(right, left + 1)), min(height, max(lower, upper + 1))


def paint(image: Image.Image, boxes: Iterable[Box], colour: Colour) -> Image.Image:
    """A copy of an image with boxes filled; the image itself stays.

    Args:
        image: RGB, before any resizing: boxes are fractions of it.
        boxes: in it.
        colour: that fills them, 0 to 255; `mean_colour` gives the one that a tower sees as zero.

    Raises:
        ValueError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"paint needs an RGB image, got {image.mode}")
    painted = image.copy()
    for box in boxes:
        painted.paste(colour, pixel_box(box, image.width, image.height))
    return painted


def random_square(generator: np.random.Generator, image_id: str, size: int = 224, side: int = SQUARE) -> Box:
    """A square at a random place, for a sample without a box of its own, as AGREE has it: clipped at the border.

    Args:
        generator: drawn from twice.
        image_id: of the image.
        size: pixels of the image that the tower sees, along both axes.
        side: of the square, in the same pixels.
    """
    left, upper = (int(value) for value in generator.integers(0, size, 2))
    right, lower = min(size, left + side), min(size, upper + side)
    return Box(image_id, "", "random", left / size, upper / size, right / size, lower / size, 1.0)
