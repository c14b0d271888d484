"""Ready-made image features by image, from a bank of vectors or a precomputed folder, cut into shards by image."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from xmatch.data import files
from xmatch.data.feature_sets import VIEW_MARK, FeatureSets
from xmatch.data.precomp import read_precomp
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

NAMES_SCHEMA = pa.schema([("id", pa.string())])
"""What steps on ready-made features read: which images; the features are mapped where they lie."""


@dataclass(frozen=True, kw_only=True)
class RegionSource:
    """Where ready-made features of images are."""

    path: str = ""
    """A bank of vectors whose `group` is the image (embed --side image_features, convert), or a precomputed folder."""
    split: str = ""
    """The split of a precomputed folder; a bank has none."""


def open_regions(source: RegionSource) -> FeatureSets:
    """The features of a source, which are not read before they are used.

    Raises:
        InputError: there are none, or the files are broken.
    """
    if not source.split:
        return FeatureSets.from_bank(source.path)
    found = read_precomp(source.path, source.split)
    if found.regions is None:
        raise InputError(
            f"{source.path!r} has no {source.split}_ims.npy; expected the region features of split {source.split!r} "
            "there."
        )
    names = found.captions.image_ids
    return FeatureSets.from_array(found.regions, names, source.path, found.boxes, found.sizes)


def region_names(sets: FeatureSets) -> list[str]:
    """The images of a source in their order, mirrored views left out."""
    return [name for name in sets.rows if not name.endswith(VIEW_MARK)]


def plan_region_shards(source: RegionSource, images_per_shard: int) -> list[Shard]:
    """Shards of consecutive images.

    Raises:
        InputError: as `open_regions`, or there are no images.
    """
    count = len(region_names(open_regions(source)))
    if not count:
        raise InputError(f"{source.path!r} holds no images; expected ready-made features there.")
    starts = range(0, count, images_per_shard)
    return [
        Shard(shard_name(index), source.path, start, min(count, start + images_per_shard))
        for index, start in enumerate(starts)
    ]


@dataclass(frozen=True)
class RegionReader:
    """Reads which images a shard has."""

    source: RegionSource

    def __call__(self, shard: Shard) -> pa.Table:
        """A row of NAMES_SCHEMA for each image of the shard."""
        names = region_names(open_regions(self.source))[shard.start : shard.stop]
        return pa.table([pa.array(names, pa.string())], schema=NAMES_SCHEMA)


def region_files(source: RegionSource) -> list[str]:
    """The files that a source consists of, for the record of a run."""
    if not source.split:
        return files.list_files(source.path) if files.is_folder(source.path) else [source.path]
    names = (f"{source.split}_{kind}" for kind in ("ims.npy", "ids.txt", "boxes.npy", "img_sizes.npy"))
    return [path for path in (files.join(source.path, name) for name in names) if files.exists(path)]
