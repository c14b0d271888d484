"""The six numbers behind a region's features that say where it is (VinVL; golden `mvptr_tsv.json` has their place)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmatch.data.region_rows import GEOMETRY, GEOMETRY_TOLERANCE, ImageRegions
from xmatch.errors import InputError


def geometry(boxes: npt.NDArray[np.float32], width: float, height: float) -> npt.NDArray[np.float32]:
    """x1 / W, y1 / H, x2 / W, y2 / H, (x2 - x1) / W and (y2 - y1) / H of boxes (K, 4) in pixels: (K, 6) float32."""
    shares = boxes.astype(np.float32) / np.array([width, height] * 2, np.float32)
    return np.concatenate([shares, shares[:, 2:] - shares[:, :2]], axis=1)


def has_geometry(regions: ImageRegions) -> bool:
    """Whether the last six numbers of the features are those of the boxes.

    Raises:
        InputError: boxes or the image's size are not known.
    """
    expected = _own(regions)
    if regions.features.shape[1] < GEOMETRY:
        return False
    return bool((np.abs(regions.features[:, -GEOMETRY:] - expected) <= GEOMETRY_TOLERANCE).all())


def with_geometry(regions: ImageRegions) -> ImageRegions:
    """The same regions, their features ending in the geometry of their boxes.

    Raises:
        InputError: boxes or the image's size are not known.
    """
    if has_geometry(regions):
        return regions
    return regions._replace(features=np.concatenate([regions.features, _own(regions)], axis=1))


def without_geometry(regions: ImageRegions) -> ImageRegions:
    """The same regions, their features without the geometry of their boxes.

    Raises:
        InputError: boxes or the image's size are not known.
    """
    return regions._replace(features=regions.features[:, :-GEOMETRY]) if has_geometry(regions) else regions


def _own(regions: ImageRegions) -> npt.NDArray[np.float32]:
    """The geometry (K, 6) of the boxes of an image."""
    if len(regions.boxes) != len(regions.features) or regions.width < 1 or regions.height < 1:
        raise InputError(
            f"image {regions.image_id!r}: boxes and the image's size are not known, so that the six numbers of where "
            "its regions are cannot be made or found. Take files that have them, such as VinVL's predictions.tsv."
        )
    return geometry(regions.boxes, regions.width, regions.height)
