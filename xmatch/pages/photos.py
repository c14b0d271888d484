"""Photos of a page: thumbnails within it, each read once."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError
from xmatch.pages.cards import Photo

THUMBNAIL_SIDE = 240
"""Pixels on the longer side of a thumbnail."""
Crop = Literal["square", "none"]


class Thumbnail(NamedTuple):
    """A small WebP as a data URI, and its width over its height."""

    data_uri: str
    aspect: float


def thumbnail(source: str | bytes, crop: Crop = "square", side: int = THUMBNAIL_SIDE) -> Thumbnail | None:
    """A thumbnail of an image; None where it cannot be read.

    Args:
        source: place of the image, or the encoded image.
        crop: `square` cuts the middle out; `none` shows all of it, so that boxes can be drawn on it.
        side: pixels of the longer side.
    """
    try:
        image = decode_rgb(source)
    except InputError:
        return None
    aspect = 1.0
    if crop == "square":
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short)).resize((side, side))
    else:
        aspect = image.width / image.height
        image.thumbnail((side, side))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=68, method=4)
    return Thumbnail("data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode(), aspect)


class PhotoBook:
    """Photos of a page, each read once, when it is first asked for.

    Args:
        names: of the images.
        paths: where they lie, "" where one cannot be shown.
        crop: how they are cut.
    """

    def __init__(self, names: Sequence[str], paths: Sequence[str], crop: Crop = "square") -> None:
        self._names, self._paths, self._crop = names, paths, crop
        self._numbers: dict[int, int | None] = {}
        self.photos: list[Photo] = []

    def number(self, row: int) -> int | None:
        """The photo of an image, by its number on the page; None where it cannot be shown."""
        if row not in self._numbers:
            found = thumbnail(self._paths[row], self._crop) if self._paths[row] else None
            self._numbers[row] = None if found is None else len(self.photos)
            if found is not None:
                photo = Photo(len(self.photos), self._names[row], found.data_uri, aspect=found.aspect)
                self.photos.append(photo)
        return self._numbers[row]
