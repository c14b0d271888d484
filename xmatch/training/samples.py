"""The training and validation samples of a dual encoder, as Arrow tables that workers memory-map."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.captions import CaptionSet, read_captions
from xmatch.data.precomp import Precomp, read_precomp
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError

SAMPLE_SCHEMA = pa.schema(
    [("caption_id", pa.string()), ("caption", pa.string()), ("image_id", pa.string()), ("image_row", pa.int64())]
)
"""One row a caption; `image_row` is the image's row in the image table beside it."""

REGIONS_NOTE = "regions.json"
"""Beside samples whose images are ready-made regions: where these lie."""

IMAGE_SCHEMA = pa.schema([("image_id", pa.string()), ("uri", pa.string())])

Fetch = Callable[[str], str]
"""From a path or URI to a local path with its content."""


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """One split of one captioned image set."""

    captions: str = ""
    """Captions: Karpathy, LXMERT or COCO captions JSON; a Conceptual Captions .tsv; a precomputed folder of SCAN or
    VSE-infinity; .tar or .parquet files, as one file, a folder, or a glob."""
    images: str = ""
    """Folder with the images, where the captions' place does not hold them."""
    split: str = "train"
    """Karpathy or precomputed split, or several joined by commas; forms without splits take all."""

    source: str = "mscoco"
    """Language source of a LXMERT file."""
    inputs: Literal["images", "regions", "text"] = "images"
    """`regions`: the ready-made features `{split}_ims.npy` of a precomputed folder, instead of photographs. `text`:
    captions of a Karpathy JSON (or .json.gz) alone, for recipe=text_pairs; its photographs need not be there."""
    exclude: str = ""
    """Karpathy JSON of images whose captions are left out, in whatever spelling of their ids (inputs=text)."""
    exclude_split: str = ""
    """Splits of that file, joined by commas; empty: all."""

    def __post_init__(self) -> None:
        """Images need a folder, unless the captions' own place holds them."""
        if self.images and not self.captions:
            raise InputError("captions and images belong together: give both, the caption file and the image folder.")
        if (self.exclude or self.exclude_split) and (self.inputs != "text" or not self.exclude):
            raise InputError("exclude, and exclude_split with it, leave captions out of inputs=text; give all or none.")
        if self.inputs == "text":
            return
        if self.captions.endswith(".json") and not self.images:
            raise InputError(f"{self.captions!r} names images: give the folder with them as images, too.")
        if self.inputs == "regions" and "," in self.split:
            raise InputError(f"inputs=regions takes one split of a precomputed folder, got {self.split!r}.")


class Samples(NamedTuple):
    """Captions and the images they describe, memory-mapped.

    captions: table of SAMPLE_SCHEMA; images: table of IMAGE_SCHEMA; image_rows: (M,) int64, image of each caption;
    regions: (N, K, C) ready-made features in the order of `images`, or None; boxes (N, K, 4) and sizes (N, 2) of them
    in pixels, or None where not known.
    """

    captions: pa.Table
    images: pa.Table
    image_rows: npt.NDArray[np.int64]
    regions: npt.NDArray[np.floating] | None = None
    boxes: npt.NDArray[np.floating] | None = None
    sizes: npt.NDArray[np.number] | None = None


def read_split(config: CaptionsConfig, fetch: Fetch = files.local_copy) -> CaptionSet:
    """The captions of a configured split; `fetch` is asked for the features of ready-made regions."""
    if config.inputs == "regions":
        return _read_regions(config.captions, config.split, fetch).captions
    if config.inputs == "text":
        left_out = read_text_captions(config.exclude, config.exclude_split).image_ids if config.exclude else ()
        return read_text_captions(config.captions, config.split, left_out)
    return read_captions(config.captions, config.images, config.split, config.source)


def _read_regions(folder: str, split: str, fetch: Fetch) -> Precomp:
    """A split of a precomputed folder, which must have features.

    Raises:
        InputError: it has none.
    """
    found = read_precomp(folder, split, fetch=fetch)
    if found.regions is None:
        raise InputError(f"{folder!r} has no {split}_ims.npy; expected the region features of split {split!r} there.")
    return found


def write_samples(captions: CaptionSet, folder: str, config: CaptionsConfig | None = None) -> None:
    """Write captions and images as two Arrow files into `folder`, atomically each.

    Args:
        captions: of the split.
        folder: local folder or URI.
        config: the split's, where its images are ready-made regions: a note of their place is written, not a copy.
    """
    rows = np.asarray(captions.caption_image, dtype=np.int64)
    ids = captions.image_ids
    table = pa.table(
        [
            pa.array(captions.caption_ids, pa.string()),
            pa.array(captions.captions, pa.string()),
            pa.array([ids[row] for row in rows], pa.string()),
            pa.array(rows, pa.int64()),
        ],
        schema=SAMPLE_SCHEMA,
    )
    images = pa.table([pa.array(ids, pa.string()), pa.array(captions.image_paths, pa.string())], schema=IMAGE_SCHEMA)
    for name, content in (("captions.arrow", table), ("images.arrow", images)):
        with files.open_atomic(files.join(folder, name)) as sink, pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content)
    if config is not None and config.inputs == "regions":
        place = config.captions if files.is_uri(config.captions) else os.path.abspath(config.captions)
        files.write_json(files.join(folder, REGIONS_NOTE), {"folder": place, "split": config.split})


def read_samples(folder: str, fetch: Fetch = files.local_copy) -> Samples:
    """Samples written by `write_samples`, with their regions where they have any.

    Args:
        folder: local folder or URI.
        fetch: gives a local file with the content of a URI, and a local path as it is.
    """
    captions, images = (
        pa.ipc.open_file(pa.memory_map(fetch(files.join(folder, name)))).read_all()
        for name in ("captions.arrow", "images.arrow")
    )
    note, rows = files.join(folder, REGIONS_NOTE), captions.column("image_row").to_numpy()
    if not files.exists(note):
        return Samples(captions, images, rows)
    place = files.read_json(note)
    found = _read_regions(place["folder"], place["split"], fetch)
    return Samples(captions, images, rows, found.regions, found.boxes, found.sizes)
