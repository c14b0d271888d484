"""The page of clusters of duplicates: what looks alike, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xmatch.pages.cards import Card, Match, Page, Section, Token
from xmatch.pages.photos import PhotoBook

MOST_PHOTOS = 6
"""Photos of one cluster."""


class ShownCluster(NamedTuple):
    """A cluster on the page.

    Attributes:
        rows: its members, the first stands for all.
        similarities: cosine of each with the first.
        size: members in all.
        smallest: least cosine of any two members.
    """

    rows: Sequence[int]
    similarities: Sequence[float]
    size: int
    smallest: float


def clusters_page(
    clusters: Sequence[ShownCluster],
    names: Sequence[str],
    paths: Sequence[str],
    figures: Sequence[tuple[str, str]],
) -> Page | None:
    """A page of clusters, largest first; None where no photo of them can be shown.

    Args:
        clusters: to be shown.
        names: ids of the bank's images, by row.
        paths: places of them, "" where there is none.
        figures: shown at the top.
    """
    book = PhotoBook(names, paths)
    cards = []
    for cluster in clusters:
        pairs = zip(cluster.rows[:MOST_PHOTOS], cluster.similarities, strict=False)
        numbered = [(book.number(row), similarity) for row, similarity in pairs]
        text = f"{cluster.size:,} images, {names[cluster.rows[0]]} first. Least alike: {cluster.smallest:.3f}."
        cards.append(Card([Token(text)], [Match(number, value) for number, value in numbered if number is not None]))
    if not book.photos:
        return None
    lead = (
        "Each card is a cluster: images joined by a chain of pairs above the threshold, the one that would stand for "
        "all first, with the cosine of each to it."
    )
    return Page(
        title="Duplicates of a key bank",
        lead="Images whose vectors are equal or nearly so, as the model sees them.",
        figures=figures,
        sections=[Section("Largest clusters", lead, cards)],
        photos=book.photos,
    )
