"""Settings of re-ranking: both ways of it, for both directions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from alignment.rerank.candidates import WAYS, Way
from xmatch.errors import InputError

PUBLISHED_SLOTS = 10
"""Entities of a caption that AGREE uses."""


@dataclass(frozen=True, kw_only=True)
class EntityConfig:
    """Entity-guided re-ranking in one direction."""

    enabled: bool = True
    """Whether it is done."""
    mask_weight: float
    """Weight of what the score loses when entities are masked, between 0 and 1; the other term has the rest."""
    prompt_weight: float
    """Weight of the mean score of the entities' prompts, between 0 and 1; the other term has the rest."""
    pool: int = 128
    """Best candidates by the plain score that are re-ranked."""

    def __post_init__(self) -> None:
        """Weights are shares."""
        if not (0 <= self.mask_weight <= 1 and 0 <= self.prompt_weight <= 1) or self.pool < 1:
            raise InputError(
                f"expected mask_weight and prompt_weight between 0 and 1 and a pool of at least 1, got "
                f"{self.mask_weight}, {self.prompt_weight} and {self.pool}."
            )


@dataclass(frozen=True, kw_only=True)
class BidirectionalConfig:
    """Bidirectional re-ranking in one direction."""

    enabled: bool = True
    """Whether it is done. It can lower recall: tune it."""
    k: int = 20
    """Places of both lists that count."""

    def __post_init__(self) -> None:
        """At least the best candidate counts."""
        if self.k < 1:
            raise InputError(f"bidirectional re-ranking needs k of at least 1, got {self.k}.")


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """Re-ranking in one direction."""

    egr: EntityConfig
    """Entity-guided re-ranking, first."""
    tbr: BidirectionalConfig = field(default_factory=BidirectionalConfig)
    """Bidirectional re-ranking, second."""


def _published(mask_weight: float, prompt_weight: float) -> DirectionConfig:
    return DirectionConfig(egr=EntityConfig(mask_weight=mask_weight, prompt_weight=prompt_weight))


@dataclass(frozen=True, kw_only=True)
class RerankSettings:
    """How lists are re-ranked."""

    t2i: DirectionConfig = field(default_factory=lambda: _published(0.1, 0.01))
    """Text to image, by default with the published weights."""
    i2t: DirectionConfig = field(default_factory=lambda: _published(0.02, 0.2))
    """Image to text, by default with the published weights."""
    slots: int = PUBLISHED_SLOTS
    """Entities of a caption that are used, the first ones. The mean difference of its entities counts this many times,
    so that a weight means the same for captions of one entity and of ten."""
    empty_slots: Literal["ignored", "bare_text"] = "ignored"
    """What stands where a caption has fewer entities: nothing, or, as in the original, the empty text (`bare_text`)."""

    def __post_init__(self) -> None:
        """At least one entity."""
        if self.slots < 1:
            raise InputError(f"slots must be at least 1, got {self.slots}.")

    def of(self, way: Way) -> DirectionConfig:
        """The settings of one direction."""
        return self.t2i if way == "t2i" else self.i2t


def with_direction(
    settings: RerankSettings, way: Way, *, egr: EntityConfig | None = None, tbr: BidirectionalConfig | None = None
) -> RerankSettings:
    """The same settings but for the steps of one direction that are given."""
    old = settings.of(way)
    new = DirectionConfig(egr=egr or old.egr, tbr=tbr or old.tbr)
    if way == "t2i":
        return dataclasses.replace(settings, t2i=new)
    return dataclasses.replace(settings, i2t=new)


def without_entities(settings: RerankSettings) -> RerankSettings:
    """The same settings with entities switched off in both directions."""
    for way in WAYS:
        settings = with_direction(settings, way, egr=dataclasses.replace(settings.of(way).egr, enabled=False))
    return settings


def described(settings: RerankSettings, way: Way) -> str:
    """The settings of a direction in words."""
    egr, tbr = settings.of(way).egr, settings.of(way).tbr
    entities = f"masks {egr.mask_weight:g}, prompts {egr.prompt_weight:g}, pool {egr.pool}" if egr.enabled else "off"
    return f"EGR {entities}; TBR {f'k {tbr.k}' if tbr.enabled else 'off'}"
