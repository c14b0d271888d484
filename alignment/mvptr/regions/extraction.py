"""Images to regions, one shard at a time; and which images."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from alignment.mvptr.regions.detector_config import DetectorConfig, RegionDetector
from alignment.mvptr.regions.detectors import load_detector
from alignment.mvptr.regions.geometry import with_geometry
from alignment.mvptr.regions.selection import Candidates, SelectionConfig, select
from xmatch.data import files
from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.image_sets import IMAGE_SUFFIXES
from xmatch.data.region_files import regions_to_vectors
from xmatch.data.region_rows import ImageRegions
from xmatch.data.steps import StepOutput, quarantine_table
from xmatch.errors import InputError

NOTHING = "the detector proposes nothing with an area"


def named_regions(image_id: str, image: Image.Image, kept: Candidates, names: Sequence[str]) -> ImageRegions:
    """Selected candidates as regions of their image, without geometry.

    Args:
        image_id: of the image.
        image: in which they were found.
        kept: the candidates.
        names: of the detector's classes, by label.
    """
    labels = kept.labels.cpu().numpy()
    return ImageRegions(
        image_id,
        kept.boxes.cpu().numpy().astype(np.float32),
        kept.features.cpu().numpy().astype(np.float32),
        image.width,
        image.height,
        tuple(names[label] for label in labels),
        kept.scores.cpu().numpy().astype(np.float32),
        labels,
    )


class ExtractRegions:
    """A step: rows of LISTING_SCHEMA to a table of regions; images that cannot be decoded are quarantined.

    A batch holds images of one size: beside a larger one a smaller one is padded, which some detectors see.

    Args:
        detector: what finds candidates.
        selection: which of them become regions.
        geometry: whether features end with the six numbers of their boxes.
        batch_size: images in one forward pass.
        threads: of torch.
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(
        self,
        detector: DetectorConfig,
        selection: SelectionConfig,
        *,
        geometry: bool = True,
        batch_size: int = 4,
        threads: int = 1,
        device: str = "auto",
    ) -> None:
        self.config, self.selection, self.geometry = detector, selection, geometry
        self.batch_size, self.threads, self.device = batch_size, threads, device
        self.seconds: dict[str, float] = {}
        self._detector: RegionDetector | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Regions of one shard, image by image in row order."""
        torch.set_num_threads(self.threads)
        if self._detector is None:
            self._detector = load_detector(self.config, self.device)
        broken: list[tuple[str, str, str]] = []
        found: dict[int, tuple[ImageRegions, int]] = {}
        sizes: dict[tuple[int, int], list[tuple[int, str, Image.Image]]] = {}
        for number, row in enumerate(rows.to_pylist()):
            image = self._image(row, broken)
            if image is None:
                continue
            batch = sizes.setdefault(image.size, [])
            batch.append((number, row["id"], image))
            if len(batch) == self.batch_size:
                self._look(self._detector, sizes.pop(image.size), found, broken)
        for batch in sizes.values():
            self._look(self._detector, batch, found, broken)
        images = [found[number][0] for number in sorted(found)]
        counts = {
            "images": len(images),
            "regions": sum(len(image.features) for image in images),
            "images_with_repeated_regions": sum(repeated > 0 for _, repeated in found.values()),
            "quarantined": len(broken),
        }
        return StepOutput(self._table(self._detector, images), counts, quarantine_table(broken))

    def _image(self, row: Mapping[str, str | bytes | None], broken: list[tuple[str, str, str]]) -> Image.Image | None:
        started = time.perf_counter()
        source = row["uri"] if row["bytes"] is None else row["bytes"]
        try:
            return decode_rgb(source or "")
        except UnreadableImage as error:
            broken.append((str(row["id"]), str(row["uri"] or ""), str(error)))
            return None
        finally:
            self.seconds["decode"] = self.seconds.get("decode", 0.0) + time.perf_counter() - started

    def _look(
        self,
        detector: RegionDetector,
        batch: list[tuple[int, str, Image.Image]],
        found: dict[int, tuple[ImageRegions, int]],
        broken: list[tuple[str, str, str]],
    ) -> None:
        """Put the regions of numbered images into `found`, with how many of them are repeated."""
        started = time.perf_counter()
        candidates = detector([image for _, _, image in batch])
        self.seconds["detector"] = self.seconds.get("detector", 0.0) + time.perf_counter() - started
        for (number, image_id, image), one in zip(batch, candidates, strict=True):
            kept, repeated = select(one, self.selection)
            if not len(kept.scores):
                broken.append((image_id, "", NOTHING))
                continue
            regions = named_regions(image_id, image, kept, detector.names)
            found[number] = (with_geometry(regions) if self.geometry else regions), repeated

    def _table(self, detector: RegionDetector, images: Sequence[ImageRegions]) -> pa.Table:
        if images:
            return regions_to_vectors(images)
        one = ImageRegions(
            "none",
            np.array([[0, 0, 1, 1]], np.float32),
            np.zeros((1, detector.width), np.float32),
            1,
            1,
            ("",),
            np.zeros(1, np.float32),
            np.zeros(1, np.int64),
        )
        return regions_to_vectors([with_geometry(one) if self.geometry else one]).slice(0, 0)


def image_places(root: str, image_ids: Sequence[str], where: str) -> list[str]:
    """Paths of images in a folder by id: the file's name, with or without its suffix.

    Args:
        root: folder of the images.
        image_ids: of them.
        where: what names them, for messages.

    Raises:
        InputError: one is not there; names the row.
    """
    named: dict[str, str] = {}
    for path in files.list_files(root):
        name = path.rsplit("/", 1)[-1]
        if name.lower().endswith(IMAGE_SUFFIXES):
            named[name] = path
            named.setdefault(os.path.splitext(name)[0], path)
    for row, image_id in enumerate(image_ids):
        if image_id not in named:
            raise InputError(
                f"{where!r}, row {row}: no image {image_id!r} in {root!r}; its id is the file's name, with or without "
                f"{', '.join(IMAGE_SUFFIXES)}."
            )
    found = [named[image_id] for image_id in image_ids]
    files.require_inside(root, found)
    return found


def stems_of(uris: Sequence[str]) -> list[str]:
    """Names of images without folder and suffix, by which Maria knows them.

    Raises:
        InputError: two images have one name.
    """
    found: dict[str, str] = {}
    for uri in uris:
        stem = os.path.splitext(uri.rsplit("/", 1)[-1].rsplit("#", 1)[-1])[0]
        if found.setdefault(stem, uri) != uri:
            raise InputError(f"images {found[stem]!r} and {uri!r} have one name, {stem!r}, by which Maria knows them.")
    return list(found)
