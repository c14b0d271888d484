"""The page of a re-ranking: what moved up and down for a query, and why, with boxes where entities were grounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.entities.entity_tables import Box
from alignment.rerank.candidates import Way
from alignment.rerank.entity_slots import EntitySlots
from alignment.rerank.explanation import Explained, Moved, phrases_of
from xmatch.data.captions import CaptionSet
from xmatch.pages.cards import Photo
from xmatch.pages.photos import PhotoBook
from xmatch.pages.render import render_template
from xmatch.pages.worst_queries import Item

COLOURS = 8
"""Colours of entities on the page; more entities take them again."""


@dataclass(frozen=True)
class DrawnBox:
    """A box as it is drawn, in per cent of the picture."""

    left: float
    top: float
    width: float
    height: float
    colour: int
    title: str


@dataclass(frozen=True)
class EntityRow:
    """What one entity says of a candidate."""

    phrase: str
    colour: int
    prompt: float
    masked: float
    loss: float
    share: float


@dataclass(frozen=True)
class CandidateCard:
    """One candidate.

    Attributes:
        item: the image or caption, its plain score, and whether it is a true match.
        move: in words.
        kind: up, down, same, new or gone.
        why: what decided it, a sentence each.
        own_share: what the plain score adds to the final one, or None.
        entities: what each entity adds.
        boxes: drawn on the picture.
    """

    item: Item
    move: str
    kind: str
    why: Sequence[str]
    own_share: float | None
    entities: Sequence[EntityRow]
    boxes: Sequence[DrawnBox]


@dataclass(frozen=True)
class QueryCard:
    """One query; `entities` are those of a caption that asks, and its photo's boxes are drawn for none."""

    item: Item
    result: str
    entities: Sequence[tuple[str, int]]
    candidates: Sequence[CandidateCard]


@dataclass(frozen=True)
class QuerySection:
    """Queries under a heading."""

    title: str
    lead: str
    queries: Sequence[QueryCard]


@dataclass(frozen=True)
class RerankPage:
    """A whole page."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[QuerySection]
    photos: Sequence[Photo]


class PageMaker:
    """From explained queries to the parts of the page.

    Args:
        captions: the split; images without a place are shown by their ids.
        slots: of its captions' entities; None where entities were not asked.
        phrases: texts of each caption's entities; may be empty.
        boxes: by image; may be empty.
    """

    def __init__(
        self,
        captions: CaptionSet,
        slots: EntitySlots | None,
        phrases: Sequence[Sequence[str]],
        boxes: Mapping[str, Sequence[Box]],
    ) -> None:
        self._captions, self._phrases, self._boxes = captions, phrases, boxes
        self._slots = slots
        self.book = PhotoBook(captions.image_ids, captions.image_paths, crop="none")

    def query(self, explained: Explained) -> QueryCard:
        """One query with its candidates."""
        way, query = explained.way, explained.query
        item = self._caption(query) if way == "t2i" else self._image(query)
        own = phrases_of(self._slots, self._phrases, query) if way == "t2i" else []
        candidates = [self._candidate(way, query, one) for one in explained.moved]
        ranks = [
            "not listed" if rank is None else f"rank {rank:,}" for rank in (explained.rank_before, explained.rank_after)
        ]
        coloured = [(phrase, at % COLOURS) for at, phrase in enumerate(own)]
        return QueryCard(item, f"Its match: {ranks[0]} → {ranks[1]}", coloured, candidates)

    def _candidate(self, way: Way, query: int, moved: Moved) -> CandidateCard:
        caption, image = (query, moved.row) if way == "t2i" else (moved.row, query)
        is_match = int(self._captions.caption_image[caption]) == image
        shown = self._image(image) if way == "t2i" else self._caption(caption)
        phrases = phrases_of(self._slots, self._phrases, caption)
        rows = [
            EntityRow(
                phrases[one.number],
                one.number % COLOURS,
                one.prompt,
                one.masked,
                moved.similarity - one.masked,
                one.share,
            )
            for one in moved.entities
        ]
        score = None if moved.similarity != moved.similarity else moved.similarity
        item = Item(shown.id, shown.text, shown.photo, score, is_match)
        drawn = self._drawn(image, phrases) if way == "t2i" else []
        return CandidateCard(item, *_movement(moved), _reasons(moved), moved.own_share, rows, drawn)

    def _image(self, row: int) -> Item:
        return Item(self._captions.image_ids[row], "", self.book.number(row))

    def _caption(self, row: int) -> Item:
        return Item(self._captions.caption_ids[row], self._captions.captions[row])

    def _drawn(self, image: int, phrases: Sequence[str]) -> list[DrawnBox]:
        """The boxes of a caption's phrases in an image."""
        found = []
        boxes = self._boxes.get(self._captions.image_ids[image], ())
        for at, phrase in enumerate(phrases):
            for box in (one for one in boxes if one.phrase == phrase.lower()):
                size = (100 * (box.x2 - box.x1), 100 * (box.y2 - box.y1))
                title = f"{phrase} {box.score:.2f}"
                found.append(DrawnBox(100 * box.x1, 100 * box.y1, *size, at % COLOURS, title))
        return found


def _movement(moved: Moved) -> tuple[str, str]:
    """In words, and in one word."""
    if moved.after is None:
        return f"fell from {moved.before}", "gone"
    if moved.before is None:
        return f"came in at {moved.after}", "new"
    if moved.after == moved.before:
        return f"stays at {moved.after}", "same"
    return f"{moved.before} → {moved.after}", "up" if moved.after < moved.before else "down"


def _reasons(moved: Moved) -> list[str]:
    """What each step did to a candidate."""
    found = []
    if moved.own_share is not None:
        final = moved.own_share + sum(one.share for one in moved.entities)
        place = "not listed" if moved.guided is None else f"place {moved.guided}"
        found.append(f"Entities: {place}, score {final:.3f}")
        if not moved.entities:
            found.append("Its caption has no entities")
    if moved.reverse is not None:
        found.append(f"Its own list holds the query at place {moved.reverse}")
    return found


def rerank_page(
    sections: Sequence[tuple[str, Sequence[Explained]]],
    maker: PageMaker,
    *,
    title: str,
    figures: Sequence[tuple[str, str]],
) -> RerankPage:
    """The page of a re-ranking.

    Args:
        sections: headings with explained queries.
        maker: of the page's parts.
        title: of the page.
        figures: (name, value) pairs for its head.
    """
    lead = (
        "For every query, what was retrieved after re-ranking, in that order, and what fell out. q is the plain score "
        "of image and caption, p that of the prompt “a photo containing …”, m that of the caption without the entity; "
        "a large q - m says that the image shows the entity. “adds” is what each contributes to the final score."
    )
    shown = [
        QuerySection(
            heading, f"{len(chosen)} queries, the largest change first." if chosen else "", [*map(maker.query, chosen)]
        )
        for heading, chosen in sections
    ]
    return RerankPage(title, lead, figures, shown, maker.book.photos)


def render_rerank(page: RerankPage) -> str:
    """HTML with styles and photos inside; it asks nothing of any server."""
    return render_template("reranked.html.j2", page)
