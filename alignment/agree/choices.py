"""Which objects of other images, and which entities with a box, a captioned image can be trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignment.agree.box_index import BoxIndex
from alignment.agree.slots import EXAMPLES
from alignment.entities.entity_tables import Box
from alignment.entities.grounding import SOURCE as GROUNDING
from alignment.entities.visual_genome import SOURCE as VISUAL_GENOME
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.image_sets import IMAGE_SUFFIXES
from xmatch.errors import InputError


class CaptionedImages(NamedTuple):
    """The captions that are trained on, their images and entities; a row is a caption.

    captions: M texts; image_rows: (M,) int64, the image of each; image_ids, uris: of the N images; spans: (M, P, 2)
    int32, characters of the entities, -1 where none is.
    """

    captions: Sequence[str]
    image_rows: npt.NDArray[np.int64]
    image_ids: Sequence[str]
    uris: Sequence[str]
    spans: npt.NDArray[np.int32]

    @classmethod
    def of(cls, captions: CaptionSet, spans: npt.NDArray[np.int32] | None) -> CaptionedImages:
        """A split with the entities that were chosen of it, spans (M, P, 2); None: no caption has any."""
        if spans is None:
            spans = np.full((len(captions.captions), 0, 2), -1, np.int32)
        return cls(captions.captions, captions.caption_image, captions.image_ids, captions.image_paths, spans)

    def image_id(self, row: int) -> str:
        """Id of the image of a caption."""
        return self.image_ids[int(self.image_rows[row])]

    def uri(self, row: int) -> str:
        """Place of that image."""
        return self.uris[int(self.image_rows[row])]

    def entities(self, row: int) -> list[str]:
        """The entities of a caption in lower case, each once, in its order."""
        caption = self.captions[row]
        return list(dict.fromkeys(caption[start:end].lower() for start, end in self.spans[row].tolist() if start >= 0))


class GroundedChoices:
    """Entities of captions that have a box in the caption's image.

    Args:
        own: the captioned images.
        boxes: of BOX_SCHEMA, of all sources; those of `grounding` are used.
    """

    def __init__(self, own: CaptionedImages, boxes: pa.Table) -> None:
        self.own = own
        self.index = BoxIndex(boxes.filter(pc.equal(boxes.column("source"), GROUNDING)))

    def candidates(self, row: int) -> list[str]:
        """Entities of a caption with a box, in the caption's order."""
        image_id = self.own.image_id(row)
        return [name for name in self.own.entities(row) if self.index.has(image_id, name)]

    def draw(self, row: int, draw: np.random.Generator) -> list[Box]:
        """The boxes of one of the candidates; none where there is none."""
        names = self.candidates(row)
        return self.index.boxes(self.own.image_id(row), names[int(draw.integers(len(names)))]) if names else []


class ObjectPhoto(NamedTuple):
    """An object, another image that shows it, and its boxes there."""

    name: str
    uri: str
    boxes: list[Box]


class ObjectChoices:
    """Other images that show an object of a captioned image.

    The objects of an image are the phrases of its boxes, of any source, and the entities of its caption, as far as
    another image shows them.

    Args:
        own: the captioned images.
        boxes: of BOX_SCHEMA, of all sources; those of `visual_genome` are what other images show.
        folders: with photographs named by their image ids, joined by commas.

    Attributes:
        missing: images with boxes but without a photograph, which are left out.
        first_missing: ids of the first of them.

    Raises:
        InputError: there are no such boxes, or no photograph of them.
    """

    def __init__(self, own: CaptionedImages, boxes: pa.Table, folders: str) -> None:
        shown = boxes.filter(pc.equal(boxes.column("source"), VISUAL_GENOME))
        if not shown.num_rows:
            raise InputError(f"boxes has none of source {VISUAL_GENOME!r}, of which the losses on objects are made.")
        self.own, self.photos = own, _photos(folders)
        names = pc.unique(shown.column("image_id")).to_pylist()
        absent = [name for name in names if name not in self.photos]
        if len(absent) == len(names):
            raise InputError(
                f"object_photos {folders!r} holds none of the {len(names):,} images whose objects boxes names; "
                f"expected files such as {absent[0]}.jpg there."
            )
        self.missing, self.first_missing = len(absent), tuple(absent[:EXAMPLES])
        there = pa.array(list(self.photos), pa.string())
        self.others = BoxIndex(shown.filter(pc.is_in(shown.column("image_id"), there)))
        here = pa.array(list(own.image_ids), pa.string())
        self.index = BoxIndex(boxes.filter(pc.is_in(boxes.column("image_id"), here)))

    def candidates(self, row: int) -> list[str]:
        """Objects that another image shows: those of the image's boxes, then those of the caption."""
        image_id = self.own.image_id(row)
        names = dict.fromkeys([*self.index.phrases_of(image_id), *self.own.entities(row)])
        return [name for name in names if len(self.others.images_of(name, image_id))]

    def draw(self, row: int, draw: np.random.Generator) -> ObjectPhoto | None:
        """One of the candidates, and one of the images that show it; None where there is none."""
        names = self.candidates(row)
        if not names:
            return None
        name = names[int(draw.integers(len(names)))]
        images = self.others.images_of(name, self.own.image_id(row))
        image_id = self.others.image_ids[images[int(draw.integers(len(images)))]]
        return ObjectPhoto(name, self.photos[image_id], self.others.boxes(image_id, name))


def _photos(folders: str) -> dict[str, str]:
    """Photographs by file name without its ending."""
    found = {}
    for folder in folders.split(","):
        for path in files.list_files(folder.strip()):
            stem, _, suffix = path.rsplit("/", 1)[-1].rpartition(".")
            if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                found[stem] = path
    return found
