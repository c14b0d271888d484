"""From pools of candidates to re-ranked lists: entities first, then both directions against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from alignment.rerank.bidirectional import rerank_bidirectional
from alignment.rerank.candidates import REVERSE, WAYS, Float32, Lists, Way, search_lists
from alignment.rerank.entity_guided import Evidence, entity_evidence, guided_lists
from alignment.rerank.entity_slots import EntitySlots
from alignment.rerank.figures import Stage
from alignment.rerank.settings import RerankSettings
from xmatch.data.vectors import Rows
from xmatch.errors import InputError
from xmatch.evaluation.bootstrap import DEPTHS

BEFORE = "before"
GUIDED = "EGR"
BIDIRECTIONAL = "TBR"


class Vectors(NamedTuple):
    """The vectors of a split.

    Attributes:
        images: (N, D).
        texts: (M, D) of captions.
        slots: of the captions' entities; None where there are none at hand.
    """

    images: Rows
    texts: Rows
    slots: EntitySlots | None = None


def pools_of(vectors: Vectors, depths: Mapping[Way, int], threads: int = 1) -> dict[Way, Lists]:
    """The best candidates of both directions by exact search.

    Args:
        vectors: of the split.
        depths: candidates of each query.
        threads: of the search.
    """
    sides = {"t2i": (vectors.texts, vectors.images), "i2t": (vectors.images, vectors.texts)}
    return {way: search_lists(*sides[way], depths[way], threads) for way in WAYS}


def list_depth(settings: RerankSettings, top_k: int) -> int:
    """Places of a list that count: those that are listed, looked into by either direction, or measured."""
    return max([top_k, *DEPTHS, *(settings.of(way).tbr.k for way in WAYS if settings.of(way).tbr.enabled)])


def pool_depths(settings: RerankSettings, top_k: int) -> dict[Way, int]:
    """Candidates that each direction needs of the search.

    Raises:
        InputError: entities are to re-rank fewer candidates than are listed or looked into.
    """
    depth, found = list_depth(settings, top_k), {}
    for way in WAYS:
        egr = settings.of(way).egr
        if egr.enabled and egr.pool < depth:
            raise InputError(
                f"{way}.egr.pool is {egr.pool}, but {depth} places of a list count (top_k, the k of bidirectional "
                f"re-ranking, and {max(DEPTHS)} for the recall); expected a pool of at least as many."
            )
        found[way] = egr.pool if egr.enabled else depth
    return found


def evidence_of(vectors: Vectors, pools: Mapping[Way, Lists], settings: RerankSettings) -> dict[Way, Evidence]:
    """What entities say, for those directions in which they are asked."""
    if vectors.slots is None:
        return {}
    return {
        way: entity_evidence(way, pools[way].first(settings.of(way).egr.pool), vectors.images, vectors.slots)
        for way in WAYS
        if settings.of(way).egr.enabled
    }


def rerank(
    pools: Mapping[Way, Lists],
    evidence: Mapping[Way, Evidence],
    settings: RerankSettings,
    ids: Mapping[Way, list[str]],
    top_k: int,
) -> list[Stage]:
    """The lists before, after entities, and after bidirectional re-ranking; a step that is off leaves no stage.

    Args:
        pools: candidates of both directions by the plain score.
        evidence: of those directions that entities re-rank.
        settings: of both steps.
        ids: of each direction's candidates, for messages.
        top_k: candidates listed; the lists of a stage are as deep as `list_depth` says.

    Raises:
        InputError: bidirectional re-ranking lacks the lists of candidates.
    """
    depth = list_depth(settings, top_k)
    now: dict[Way, Lists] = {way: pools[way].first(depth) for way in WAYS}
    more: dict[Way, dict[str, Float32]] = {way: {} for way in WAYS}
    stages = [Stage(BEFORE, dict(now), dict(more))]
    for way, found in evidence.items():
        guided = guided_lists(way, found, settings.of(way).egr, depth)
        now[way] = guided.lists
        more[way] = {"similarities": guided.similarities, "first_scores": guided.first_scores}
    if evidence:
        stages.append(Stage(GUIDED, dict(now), dict(more)))
    ways = [way for way in WAYS if settings.of(way).tbr.enabled]
    if ways:
        turned = {
            way: rerank_bidirectional(now[way], now[REVERSE[way]], ids[way], settings.of(way).tbr.k) for way in ways
        }
        kept = {way: {} if way in ways else more[way] for way in WAYS}
        stages.append(Stage(BIDIRECTIONAL, now | turned, kept))
    return stages
