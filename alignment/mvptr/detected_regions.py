"""Regions of open images from a detector, for the pipeline; jobs/extract_regions.py does whole sets on Ray."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from alignment.mvptr.regions.detector_config import RegionDetector
from alignment.mvptr.regions.extraction import named_regions
from alignment.mvptr.regions.selection import SelectionConfig, select
from xmatch.data.region_rows import ImageRegions


class DetectedRegions:
    """What a detector finds in images, an `alignment.mvptr.pipeline.RegionExtractor`.

    Args:
        detector: of `alignment.mvptr.regions.detectors.load_detector`.
        selection: which of its candidates become regions; as in the data that the model was trained on.
    """

    def __init__(self, detector: RegionDetector, selection: SelectionConfig) -> None:
        self.detector, self.selection = detector, selection

    def __call__(self, images: Sequence[Image.Image]) -> list[ImageRegions]:
        """Regions of RGB images in their order, none where the detector finds nothing.

        Images of one size go through the detector together: beside a larger one a smaller one is padded, which some
        detectors see.
        """
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault(image.size, []).append(place)
        found: dict[int, ImageRegions] = {}
        for places in by_size.values():
            for place, candidates in zip(places, self.detector([images[p] for p in places]), strict=True):
                kept = select(candidates, self.selection).regions
                found[place] = named_regions("", images[place], kept, self.detector.names)
        return [found[place] for place in range(len(images))]
