"""What pages are made of: photos, marked text, cards, sections."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError

THUMBNAIL_SIDE = 240
"""Pixels on a side of a thumbnail."""


@dataclass(frozen=True)
class Photo:
    """One image of a page; `row` names it within the page."""

    row: int
    name: str
    data_uri: str
    credit: str = ""
    link: str = ""


@dataclass(frozen=True)
class Token:
    """A stretch of text; with a photo, it shows that photo when pointed at."""

    text: str
    photo: int | None = None
    score: float = 0.0


@dataclass(frozen=True)
class Match:
    """A photo with its score."""

    photo: int
    score: float


@dataclass(frozen=True)
class Card:
    """A sentence and the photos found for it, best first."""

    tokens: Sequence[Token]
    matches: Sequence[Match]


@dataclass(frozen=True)
class Section:
    """Cards under a heading; those beyond `shown` are folded away."""

    title: str
    lead: str
    cards: Sequence[Card] = ()
    shown: int = 12


@dataclass(frozen=True)
class Tally:
    """A photo and how often it was used."""

    photo: int
    count: int


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    photos: Sequence[Photo]
    tallies: Sequence[Tally] = field(default_factory=tuple)


def thumbnail(source: str | bytes, side: int = THUMBNAIL_SIDE) -> str:
    """A square WebP thumbnail as a data URI; an image that cannot be read becomes an empty one."""
    try:
        image = decode_rgb(source)
    except InputError:
        return "data:,"
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.crop((left, top, left + short, top + short)).resize((side, side))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=68, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
