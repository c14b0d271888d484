"""Regions of images, made up."""

from __future__ import annotations

import numpy as np

from xmatch.data.region_rows import ImageRegions


def some_regions(count: int = 3, regions: int = 4, width: int = 5, seed: int = 3) -> list[ImageRegions]:
    """Images of 100 x 90 pixels with so many regions, without the geometry of their boxes."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        corners = np.sort(rng.uniform(0, 90, size=(regions, 2, 2)).astype(np.float32), axis=1)
        features = rng.normal(size=(regions, width)).astype(np.float32)
        scores = np.sort(rng.random(regions).astype(np.float32))[::-1].copy()
        labels = rng.integers(0, 3, regions)
        tags = tuple(("dog", "cat's tail", "café")[label] for label in labels)
        boxes = corners.reshape(regions, 4)
        found.append(ImageRegions(f"imagé{row}", boxes, features, 100, 90, tags, scores, labels))
    return found


def same(a: ImageRegions, b: ImageRegions, *, but: tuple[str, ...] = ()) -> bool:
    """Whether all but some parts of two images' regions are equal, numbers exactly."""
    pairs = [(x, y) for name, x, y in zip(a._fields, a, b) if name not in but]
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in pairs)
