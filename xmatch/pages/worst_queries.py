"""The page of the worst queries: an image or a caption, its true match, and what was retrieved instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xmatch.pages.cards import Photo
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


def render_worst(page: WorstPage) -> str:
    """HTML with styles and thumbnails inside; it asks nothing of any server."""
    return render_template("worst_queries.html.j2", page)
