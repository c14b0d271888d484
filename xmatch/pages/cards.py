"""What pages are made of: photos, marked text, cards, sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Photo:
    """One image of a page; `row` names it within the page, `aspect` is its width over its height."""

    row: int
    name: str
    data_uri: str
    credit: str = ""
    link: str = ""
    aspect: float = 1.0


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
