"""The page of the worst queries: an image or a caption, its true match, and what was retrieved instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xmatch.pages.cards import Photo, thumbnail
from xmatch.pages.render import render_template


@dataclass(frozen=True)
class Item:
    """An image or a caption; a caption has text, an image a photo where one can be shown, and else its id alone.

    Attributes:
        id: of the image or caption.
        text: of a caption, else "".
        photo: number of the photo on the page, or None.
        score: with the query; None for the query itself.
        is_match: whether it is a true match of the query.
    """

    id: str
    text: str = ""
    photo: int | None = None
    score: float | None = None
    is_match: bool = False


@dataclass(frozen=True)
class Failure:
    """One query."""

    query: Item
    rank: int
    candidates: int
    match: Item
    found: Sequence[Item]


@dataclass(frozen=True)
class Direction:
    """The queries of one direction under a heading."""

    title: str
    lead: str
    failures: Sequence[Failure]


@dataclass(frozen=True)
class WorstPage:
    """A whole page."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    directions: Sequence[Direction]
    photos: Sequence[Photo]


class PhotoBook:
    """Photos of a page, each read once, when it is first asked for."""

    def __init__(self, names: Sequence[str], paths: Sequence[str]) -> None:
        self._names, self._paths = names, paths
        self._numbers: dict[int, int | None] = {}
        self.photos: list[Photo] = []

    def number(self, row: int) -> int | None:
        """The photo of an image, by its number on the page; None where it cannot be shown."""
        if row not in self._numbers:
            shown = thumbnail(self._paths[row]) if self._paths[row] else ""
            is_readable = len(shown) > len("data:,")
            self._numbers[row] = len(self.photos) if is_readable else None
            if is_readable:
                self.photos.append(Photo(len(self.photos), self._names[row], shown))
        return self._numbers[row]


def render_worst(page: WorstPage) -> str:
    """HTML with styles and thumbnails inside; it asks nothing of any server."""
    return render_template("worst_queries.html.j2", page)
