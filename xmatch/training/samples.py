"""The training and validation samples of a dual encoder, as Arrow tables that workers memory-map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.data import files
from xmatch.data.captions import CaptionSet, read_captions
from xmatch.errors import InputError

SAMPLE_SCHEMA = pa.schema(
    [("caption_id", pa.string()), ("caption", pa.string()), ("image_id", pa.string()), ("image_row", pa.int64())]
)
"""One row a caption; `image_row` is the image's row in the image table beside it."""

IMAGE_SCHEMA = pa.schema([("image_id", pa.string()), ("uri", pa.string())])


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """One split of one captioned image set."""

    captions: str = ""
    """Caption file: Karpathy JSON (`dataset_*.json`) or LXMERT JSON (`mscoco_*.json`)."""
    images: str = ""
    """Folder with the images."""
    split: str = "train"
    """Karpathy split, or several joined by commas; LXMERT files have none and take all."""

    def __post_init__(self) -> None:
        """Both places are needed."""
        if bool(self.captions) != bool(self.images):
            raise InputError("captions and images belong together: give both, the caption file and the image folder.")


class Samples(NamedTuple):
    """Captions and the images they describe, memory-mapped.

    captions: table of SAMPLE_SCHEMA; images: table of IMAGE_SCHEMA; image_rows: (M,) int64, image of each caption.
    """

    captions: pa.Table
    images: pa.Table
    image_rows: npt.NDArray[np.int64]


def read_split(config: CaptionsConfig) -> CaptionSet:
    """The captions of a configured split."""
    return read_captions(config.captions, config.images, config.split)


def write_samples(captions: CaptionSet, folder: str) -> None:
    """Write captions and images as two Arrow files into `folder`, atomically each."""
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


def read_samples(folder: str) -> Samples:
    """Samples written by `write_samples`."""
    captions, images = (
        pa.ipc.open_file(pa.memory_map(files.join(folder, name))).read_all()
        for name in ("captions.arrow", "images.arrow")
    )
    return Samples(captions, images, captions.column("image_row").to_numpy())
