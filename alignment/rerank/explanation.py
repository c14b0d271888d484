"""Why a candidate moved: what its score, each entity, and its own list contributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alignment.rerank.candidates import EMPTY, REVERSE, Int64, Lists, Way
from alignment.rerank.entity_slots import EntitySlots
from alignment.rerank.figures import Stage, list_ranks
from alignment.rerank.pipeline import BIDIRECTIONAL, GUIDED, Vectors
from alignment.rerank.settings import EntityConfig, RerankSettings


class EntityShare(NamedTuple):
    """One entity of a caption against one image.

    Attributes:
        number: of the entity within its caption, from 0.
        prompt: p, the score of its prompt with the image.
        masked: m, the score of the caption without it.
        share: what it adds to the final score, by its prompt and by its masking.
    """

    number: int
    prompt: float
    masked: float
    share: float


class Moved(NamedTuple):
    """One candidate of a query.

    Attributes:
        row: of the candidate.
        before: 1-based place at first; None where it was not listed.
        after: 1-based place in the end; None where it is not listed any more.
        similarity: the plain score q; NaN where it is not known.
        own_share: what q itself adds to the final score; None where entities did not re-rank.
        entities: what the entities add.
        guided: 1-based place after entities; None where they did not re-rank, or not listed.
        reverse: 1-based place of the query in the candidate's own list; None where that does not hold it, or where
            the directions were not held against each other.
    """

    row: int
    before: int | None
    after: int | None
    similarity: float
    own_share: float | None
    entities: list[EntityShare]
    guided: int | None
    reverse: int | None


class Explained(NamedTuple):
    """One query.

    Attributes:
        way: direction.
        query: its row.
        rank_before: 1-based rank of its match at first; None where it was not listed.
        rank_after: in the end.
        moved: its candidates, in their last order, then those that fell out.
    """

    way: Way
    query: int
    rank_before: int | None
    rank_after: int | None
    moved: list[Moved]


def entity_shares(
    way: Way, caption: int, image: int, similarity: float, vectors: Vectors, config: EntityConfig
) -> tuple[float, list[EntityShare]]:
    """What the plain score and each entity add to the final score of a pair; together they are that score.

    Args:
        way: direction.
        caption: its row.
        image: its row.
        similarity: q.
        vectors: of the split, with slots.
        config: weights of the direction.
    """
    mask, prompt = config.mask_weight, config.prompt_weight
    mask_share, prompt_share = ((1 - prompt) * mask, prompt) if way == "t2i" else (mask, (1 - mask) * prompt)
    plain = (1 - mask) * (1 - prompt)
    slots = vectors.slots
    count = int(slots.counts[caption]) if slots is not None else 0
    if slots is None or not count:
        return (plain + prompt_share) * similarity, []
    image_vector = np.asarray(vectors.images[image], np.float64)
    p, m = (
        np.asarray(rows.take(at[caption, :count]), np.float64) @ image_vector
        for rows, at in ((slots.prompts, slots.prompt_rows), (slots.masks, slots.mask_rows))
    )
    lost = similarity - m if way == "t2i" else np.minimum(0, similarity - m)
    shares = prompt_share * p / count + mask_share * lost * (slots.prompt_rows.shape[1] / count)
    found = [EntityShare(number, *map(float, three)) for number, three in enumerate(zip(p, m, shares))]
    return plain * similarity, found


def changed_queries(way: Way, stages: Sequence[Stage], caption_image: Int64, count: int) -> tuple[list[int], list[int]]:
    """The queries whose match rose the most, and those whose match fell the most; equal ones in the split's order.

    Args:
        way: direction.
        stages: the first and the last are compared.
        caption_image: (M,) row of each caption's image.
        count: queries of each kind.
    """
    ranks = []
    for stage in (stages[0], stages[-1]):
        lists = stage.lists[way]
        ranks.append(np.minimum(list_ranks(way, lists, caption_image), lists.rows.shape[1] + 1))
    rise = ranks[0] - ranks[1]
    order = np.argsort(-rise, kind="stable")
    risen = [int(row) for row in order[:count] if rise[row] > 0]
    order = np.argsort(rise, kind="stable")
    return risen, [int(row) for row in order[:count] if rise[row] < 0]


def explain(
    way: Way,
    query: int,
    stages: Sequence[Stage],
    vectors: Vectors | None,
    settings: RerankSettings,
    caption_image: Int64,
    depth: int,
) -> Explained:
    """What happened to the candidates of a query.

    Args:
        way: direction.
        query: its row.
        stages: of the re-ranking, the first before it.
        vectors: of the split; None where lists were given.
        settings: of the re-ranking.
        caption_image: (M,) row of each caption's image.
        depth: places shown, of the lists at first and in the end.
    """
    named = {stage.name: stage.lists for stage in stages}
    first, last = stages[0].lists[way], stages[-1].lists[way]
    shown = [*last.rows[query, :depth].tolist(), *first.rows[query, :depth].tolist()]
    is_guided = GUIDED in named and settings.of(way).egr.enabled
    is_turned = BIDIRECTIONAL in named and settings.of(way).tbr.enabled
    turned_from = stages[-2].lists[REVERSE[way]] if is_turned else None
    moved = []
    for row in dict.fromkeys(one for one in shown if one != EMPTY):
        before = _place(first, query, row)
        similarity = _similarity(way, query, row, first, vectors)
        own: float | None = None
        entities: list[EntityShare] = []
        if is_guided and vectors is not None:
            caption, image = (query, row) if way == "t2i" else (row, query)
            own, entities = entity_shares(way, caption, image, similarity, vectors, settings.of(way).egr)
        guided = _place(named[GUIDED][way], query, row) if is_guided else None
        k = settings.of(way).tbr.k
        reverse = None if turned_from is None else _place(turned_from.first(k), row, query)
        after = _place(last, query, row)
        moved.append(Moved(row, before, after, similarity, own, entities, guided, reverse))
    ranks = [_rank(way, lists, query, caption_image) for lists in (first, last)]
    return Explained(way, query, ranks[0], ranks[1], moved)


def _rank(way: Way, lists: Lists, query: int, caption_image: Int64) -> int | None:
    rank = int(list_ranks(way, lists, caption_image)[query])
    return rank if rank <= lists.rows.shape[1] else None


def _place(lists: Lists, query: int, row: int) -> int | None:
    at = np.flatnonzero(lists.rows[query] == row)
    return int(at[0]) + 1 if len(at) else None


def _similarity(way: Way, query: int, row: int, first: Lists, vectors: Vectors | None) -> float:
    at = np.flatnonzero(first.rows[query] == row)
    if len(at) or vectors is None:
        return float(first.scores[query, at[0]]) if len(at) else float("nan")
    text, image = (query, row) if way == "t2i" else (row, query)
    return float(np.asarray(vectors.texts[text], np.float64) @ np.asarray(vectors.images[image], np.float64))


def phrases_of(slots: EntitySlots | None, phrases: Sequence[Sequence[str]], caption: int) -> list[str]:
    """The texts of a caption's entities, by number; those without one are called by their number.

    Args:
        slots: of the captions; None where entities were not asked.
        phrases: texts of each caption's entities; may be empty.
        caption: its row.
    """
    count = int(slots.counts[caption]) if slots is not None else 0
    known = phrases[caption] if caption < len(phrases) else []
    return [known[at] if at < len(known) else f"entity {at + 1}" for at in range(count)]
