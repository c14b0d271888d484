"""Where regions lie in their images, as CAMERA sees it (Qu et al. 2020, section 3.1; golden `camera.json`)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from xmatch.data.region_files import SIZE_TOLERANCE

POSITION_NUMBERS = 6
"""x1 / W, y1 / H, w / W, h / H, w / h and w h / (W H)."""


def position_code(boxes: npt.NDArray[np.floating], sizes: npt.NDArray[np.number]) -> npt.NDArray[np.float32]:
    """The six numbers of boxes in their image.

    Args:
        boxes: (..., K, 4), x1, y1, x2, y2 in pixels; a box without height counts as one pixel high in w / h.
        sizes: (..., 2), width and height of the image in pixels.

    Returns:
        (..., K, 6) float32.
    """
    boxes, sizes = boxes.astype(np.float64), np.asarray(sizes, np.float64)[..., None, :]
    extent = boxes[..., 2:] - boxes[..., :2]
    ratio = extent[..., 0] / np.where(extent[..., 1] > 0, extent[..., 1], 1.0)
    area = extent.prod(-1) / sizes.prod(-1)
    code = np.concatenate([boxes[..., :2] / sizes, extent / sizes, ratio[..., None], area[..., None]], axis=-1)
    return code.astype(np.float32)


class Placed(NamedTuple):
    """The six numbers of a set's k members, (k, 6); or none, and that one of them lies outside its image."""

    code: npt.NDArray[np.float32]
    is_outside: bool


class Places(Protocol):
    """Boxes and image sizes of sets."""

    def of(self, number: int, span: npt.NDArray[np.int64]) -> Placed:
        """Codes (k, 6) of set `number`, whose k members `span` (matrix, first row, row after the last) has."""
        ...


class RowPlaces:
    """Boxes (rows, 4) and image sizes (rows, 2) of every row of a bank, whose matrices begin at `offsets`."""

    def __init__(
        self,
        boxes: npt.NDArray[np.floating],
        sizes: npt.NDArray[np.floating],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        self.boxes, self.sizes, self.offsets = boxes, sizes, offsets

    def of(self, number: int, span: npt.NDArray[np.int64]) -> Placed:
        """Codes (k, 6) of the k rows of a span."""
        rows = slice(self.offsets[span[0]] + span[1], self.offsets[span[0]] + span[2])
        return _placed(self.boxes[rows][:, None], self.sizes[rows])


class SetPlaces:
    """Boxes (N, K, 4) and image sizes (N, 2) of sets of K members each."""

    def __init__(self, boxes: npt.NDArray[np.floating], sizes: npt.NDArray[np.number]) -> None:
        self.boxes, self.sizes = boxes, sizes

    def of(self, number: int, span: npt.NDArray[np.int64]) -> Placed:
        """Codes (K, 6) of set `number`."""
        return _placed(np.asarray(self.boxes[number]), np.asarray(self.sizes[number]))


def _placed(boxes: npt.NDArray[np.floating], sizes: npt.NDArray[np.number]) -> Placed:
    """Codes of boxes (..., k, 4) in images of `sizes` (..., 2), as one list."""
    limits = np.concatenate([sizes, sizes], axis=-1)[..., None, :] + SIZE_TOLERANCE
    is_inside = (boxes <= limits) & (boxes >= -SIZE_TOLERANCE)  # a NaN is not
    if not (is_inside.all() and (np.asarray(sizes) > 0).all()):
        return Placed(np.zeros((0, POSITION_NUMBERS), np.float32), True)
    return Placed(position_code(boxes, sizes).reshape(-1, POSITION_NUMBERS), False)
