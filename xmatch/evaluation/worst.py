"""The worst queries: those whose match came last, with what was retrieved instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.eccv import ranked_lists
from xmatch.evaluation.measures import Part
from xmatch.evaluation.ranks import Counted, scores_at
from xmatch.evaluation.similarities import PartSimilarities, Similarities
from xmatch.pages.photos import PhotoBook
from xmatch.pages.worst_queries import Direction, Failure, Item, WorstPage

Way = Literal["i2t", "t2i"]
DIRECTIONS: dict[Way, tuple[str, str]] = {
    "i2t": ("Images that did not find their captions", "image to text"),
    "t2i": ("Captions that did not find their image", "text to image"),
}
"""Heading on the page, and the name elsewhere."""


class Scored(NamedTuple):
    """A candidate, as its row in the split, and its score."""

    row: int
    score: float


class WorstQuery(NamedTuple):
    """A query and what came of it.

    Attributes:
        direction: i2t (an image looks for captions) or t2i (a caption looks for images).
        query: its row in the split.
        rank: 1-based, of its best match.
        candidates: how many it was ranked among.
        match: that match.
        found: what was retrieved, best first.
    """

    direction: Way
    query: int
    rank: int
    candidates: int
    match: Scored
    found: list[Scored]


def worst_queries(source: Similarities, parts: Sequence[Part], *, count: int, depth: int = 5) -> list[WorstQuery]:
    """The queries of greatest rank in each direction, worst first; equal ranks in the order of the split.

    Queries whose match came first are no failures, and for those without any match nothing could have been found: both
    are left out.

    Args:
        source: scores (N, M) of images and captions.
        parts: folds, or the whole split; a query is shown with what its own fold holds.
        count: queries of each direction.
        depth: retrieved candidates shown.
    """
    if count < 0 or depth < 1:
        raise InputError(f"worst queries need count >= 0 and depth >= 1, got {count} and {depth}.")
    found: list[WorstQuery] = []
    for direction in DIRECTIONS:
        each = [query for part in parts for query in _of_part(source, part, direction, count, depth)]
        found += sorted(each, key=lambda query: -query.rank)[:count]
    return found


def _of_part(source: Similarities, part: Part, direction: Way, count: int, depth: int) -> list[WorstQuery]:
    inner = PartSimilarities(source, part.images, part.captions)
    counted: Counted = part.i2t if direction == "i2t" else part.t2i
    queries = _worst_rows(counted, count)
    own, others = (part.images, part.captions) if direction == "i2t" else (part.captions, part.images)
    candidates = others.stop - others.start
    lists = ranked_lists(
        inner,
        np.arange(own.stop - own.start),
        np.arange(candidates),
        {int(row): min(depth, candidates) for row in queries},
        "rows" if direction == "i2t" else "columns",
    )
    made = []
    for row in queries.tolist():
        match = int(counted.best[row])
        shown = np.array([match, *lists[row]], np.int64)
        scores = _scores(inner, direction, row, shown)
        all_scored = [Scored(int(c) + others.start, float(s)) for c, s in zip(shown, scores)]
        rank = int(counted.ranks[row])
        made.append(WorstQuery(direction, row + own.start, rank, candidates, all_scored[0], all_scored[1:]))
    return made


def _worst_rows(counted: Counted, count: int) -> npt.NDArray[np.int64]:
    """Rows of the worst queries, worst first, of shape (W,), W at most `count`; a best rank is never among them."""
    missed = np.flatnonzero((counted.best >= 0) & (counted.ranks > 1))
    return missed[np.argsort(-counted.ranks[missed], kind="stable")[:count]]


def _scores(
    source: Similarities, direction: Way, query: int, candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Scores of one query with candidates, of the shape (K,) of these."""
    same = np.full(len(candidates), query)
    return scores_at(source, same, candidates) if direction == "i2t" else scores_at(source, candidates, same)


def worst_page(
    queries: Sequence[WorstQuery], captions: CaptionSet, *, title: str, figures: Sequence[tuple[str, str]]
) -> WorstPage:
    """The page of the worst queries.

    Args:
        queries: as `worst_queries` gives them.
        captions: the split; images without a place are shown by their ids.
        title: of the page.
        figures: (name, value) pairs for its head.
    """
    book = PhotoBook(captions.image_ids, captions.image_paths)
    sections = []
    for direction, (heading, _) in DIRECTIONS.items():
        chosen = [_failure(query, captions, book) for query in queries if query.direction == direction]
        lead = (
            f"The {len(chosen)} whose best match came latest, worst first. A match that comes late may be a bad score, "
            "a bad caption, or other candidates that fit as well but count as wrong."
        )
        sections.append(Direction(heading, lead if chosen else "", chosen))
    lead = (
        "Every query was ranked against the whole gallery of its split or fold. Left: the query, and the match it "
        "should have found. Right: what was retrieved instead, best first, each with its score."
    )
    return WorstPage(title, lead, figures, sections, book.photos)


def _failure(query: WorstQuery, captions: CaptionSet, book: PhotoBook) -> Failure:
    is_image = query.direction == "i2t"

    def image(row: int, score: float | None, is_match: bool) -> Item:
        return Item(captions.image_ids[row], "", book.number(row), score, is_match)

    def caption(row: int, score: float | None, is_match: bool) -> Item:
        return Item(captions.caption_ids[row], captions.captions[row], None, score, is_match)

    def is_match(place: int, row: int) -> bool:
        if place <= query.rank:  # the rank says that none before it matches
            return place == query.rank
        pair = (row, query.query) if is_image else (query.query, row)
        return int(captions.caption_image[pair[0]]) == pair[1]

    asks, answers = (image, caption) if is_image else (caption, image)
    found = [answers(one.row, one.score, is_match(place, one.row)) for place, one in enumerate(query.found, 1)]
    match = answers(query.match.row, query.match.score, True)
    return Failure(asks(query.query, None, False), query.rank, query.candidates, match, found)
