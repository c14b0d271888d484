"""What every form of caption file is read into, and what its reader is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError

BAD_ROWS_SHOWN = 5
"""Bad rows described in words; all of them are counted."""


class CaptionSet(NamedTuple):
    """Captions and the images they describe: N images, M captions.

    caption_image: (M,) int64, the row of each caption's image.
    bad_rows: rows of the file left out because nothing can be made of them.
    first_bad: the first of them in words: file, row and what was wrong.
    """

    image_ids: list[str]
    image_paths: list[str]
    captions: list[str]
    caption_ids: list[str]
    caption_image: npt.NDArray[np.int64]
    bad_rows: int = 0
    first_bad: tuple[str, ...] = ()

    def of_images(self, image_ids: Collection[str]) -> CaptionSet:
        """The captions of some images, in the same order."""
        kept = np.array([image_id in image_ids for image_id in self.image_ids], bool)
        rows, row_of = np.flatnonzero(kept), np.cumsum(kept) - 1
        captions = np.flatnonzero(kept[self.caption_image])
        return CaptionSet(
            [self.image_ids[row] for row in rows],
            [self.image_paths[row] for row in rows],
            [self.captions[row] for row in captions],
            [self.caption_ids[row] for row in captions],
            row_of[self.caption_image[captions]],
        )


class CaptionRequest(NamedTuple):
    """What to read: the place of the captions, the images' folder ("" where the form holds them), and which part.

    content: the parsed JSON of a JSON form, null for the others.
    """

    captions: str
    images: str
    splits: list[str]
    source: str = "mscoco"
    content: Any = None


class CaptionBuilder:
    """Collects images, captions and bad rows in the order of the file."""

    def __init__(self) -> None:
        self.image_ids: list[str] = []
        self.image_paths: list[str] = []
        self.captions: list[str] = []
        self.caption_ids: list[str] = []
        self.caption_image: list[int] = []
        self.bad_rows = 0
        self.first_bad: list[str] = []
        self._row_of: dict[str, int] = {}

    def add(self, image_id: str, path: str, captions: Sequence[tuple[str, str]]) -> None:
        """One more image with its captions, pairs of (caption id, text); an image without captions is left out."""
        if captions:
            self._row_of[image_id] = len(self.image_ids)
            self.image_ids.append(image_id)
            self.image_paths.append(path)
            self._describe(self._row_of[image_id], captions)

    def add_to(self, image_id: str, path: str, captions: Sequence[tuple[str, str]]) -> None:
        """Captions of an image that may have come before: it stays one image."""
        if image_id in self._row_of:
            self._describe(self._row_of[image_id], captions)
        else:
            self.add(image_id, path, captions)

    def has(self, image_id: str) -> bool:
        """Whether the image came before."""
        return image_id in self._row_of

    def refuse(self, message: str) -> None:
        """Count a row that cannot be used."""
        self.bad_rows += 1
        if len(self.first_bad) < BAD_ROWS_SHOWN:
            self.first_bad.append(message)

    def build(self) -> CaptionSet:
        """All that was collected."""
        rows = np.asarray(self.caption_image, dtype=np.int64)
        return CaptionSet(
            self.image_ids,
            self.image_paths,
            self.captions,
            self.caption_ids,
            rows,
            self.bad_rows,
            tuple(self.first_bad),
        )

    def _describe(self, row: int, captions: Sequence[tuple[str, str]]) -> None:
        self.caption_image += [row] * len(captions)
        self.caption_ids += [caption_id for caption_id, _ in captions]
        self.captions += [caption for _, caption in captions]


def require_splits(asked: Sequence[str], there: Sequence[str], where: str) -> None:
    """Check that a file has the splits asked for.

    Raises:
        InputError: it lacks one; lists those it has.
    """
    absent = [name for name in asked if name not in there]
    if absent:
        raise InputError(f"{where!r} has no split {absent[0]!r}; it has {', '.join(there) or 'no images at all'}.")
