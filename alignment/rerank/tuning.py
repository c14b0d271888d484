"""Weights, pools and k chosen by what they do on a validation split.

Each direction on its own and one step after the other: first what entities weigh, then whether both directions are held
against each other and how deep. Not re-ranking is the first trial of every step, then come smaller weights and k before
larger; a later trial is taken only if it is better than all before it. So nothing is switched on that does not help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, TypeVar

from alignment.rerank.bidirectional import bidirectional_order
from alignment.rerank.candidates import REVERSE, WAYS, Int64, Lists, Way
from alignment.rerank.entity_guided import Evidence, guided_lists
from alignment.rerank.figures import list_ranks, mean_recall
from alignment.rerank.settings import BidirectionalConfig, EntityConfig, RerankSettings, with_direction
from xmatch.errors import InputError
from xmatch.evaluation.bootstrap import DEPTHS
from xmatch.evaluation.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is tried."""

    mask_weights: list[float] = field(default_factory=lambda: [0.0, 0.02, 0.05, 0.1, 0.2])
    """Weights of what is lost by masking."""
    prompt_weights: list[float] = field(default_factory=lambda: [0.0, 0.01, 0.05, 0.1, 0.2, 0.3])
    """Weights of prompts."""
    pools: list[int] = field(default_factory=lambda: [128])
    """Candidates that entities re-rank."""
    ks: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Places that count in bidirectional re-ranking."""
    min_gain: float = 0.0
    """Points of mean recall by which a step must help to be switched on."""

    def __post_init__(self) -> None:
        """At least one of each, and a list as deep as recall is measured."""
        if not (self.mask_weights and self.prompt_weights and self.pools and self.ks) or min(self.ks) < 1:
            raise InputError("tuning needs at least one mask weight, prompt weight, pool and k; k is at least 1.")
        if min(self.pools) < self.depth or self.min_gain < 0:
            raise InputError(
                f"tuning needs pools of at least {self.depth} candidates (the largest k, and {max(DEPTHS)} for the "
                f"recall) and min_gain of 0 or more, got {min(self.pools)} and {self.min_gain}."
            )

    @property
    def depth(self) -> int:
        """Places of a list that count."""
        return max(*self.ks, *DEPTHS)


Key = TypeVar("Key", bound=tuple[float, ...])


class Trial(NamedTuple):
    """One setting that was tried.

    Attributes:
        way: direction.
        step: egr or tbr.
        setting: what was set; empty: the step is off.
        mean_recall: of R@1, R@5 and R@10, in per cent.
        is_taken: whether it was chosen.
    """

    way: Way
    step: str
    setting: dict[str, Any]
    mean_recall: float
    is_taken: bool = False


class Tuned(NamedTuple):
    """What tuning chose, and all that it tried."""

    settings: RerankSettings
    trials: list[Trial]


def tuning_settings(settings: RerankSettings, config: TuningConfig) -> RerankSettings:
    """Settings that reach as deep as anything that is tried, so that all of it can be measured."""
    for way in WAYS:
        egr = dataclasses.replace(settings.of(way).egr, enabled=True, pool=max(config.pools))
        settings = with_direction(settings, way, egr=egr, tbr=BidirectionalConfig(k=max(config.ks)))
    return settings


def tune(
    pools: Mapping[Way, Lists],
    evidence: Mapping[Way, Evidence],
    settings: RerankSettings,
    caption_image: Int64,
    config: TuningConfig,
) -> Tuned:
    """The best settings for one split.

    Args:
        pools: candidates of both directions by the plain score, at least `config.depth` deep where there are so many.
        evidence: of every direction that entities may re-rank, as deep as the largest pool.
        settings: what is not tuned is taken from them: slots, and what stands in empty ones.
        caption_image: (M,) row of each caption's image.
        config: what is tried.
    """
    lists: dict[Way, Lists] = {way: pools[way].first(config.depth) for way in WAYS}
    trials: list[Trial] = []
    for way in WAYS:
        egr = dataclasses.replace(settings.of(way).egr, enabled=False)
        if way in evidence:
            egr = _tune_entities(way, evidence[way], lists[way], caption_image, config, trials) or egr
        if egr.enabled:
            lists[way] = guided_lists(way, evidence[way], egr, config.depth).lists
        settings = with_direction(settings, way, egr=egr)
    for way in WAYS:
        tbr = _tune_bidirectional(way, lists, caption_image, config, trials)
        settings = with_direction(settings, way, tbr=tbr)
    return Tuned(settings, trials)


def hits(ranks: Ranks) -> int:
    """Queries found at each depth, summed over the depths: the mean recall in whole numbers, so that equal is equal."""
    return int(sum((ranks <= k).sum() for k in DEPTHS))


def _tune_entities(
    way: Way, evidence: Evidence, before: Lists, caption_image: Int64, config: TuningConfig, trials: list[Trial]
) -> EntityConfig | None:
    tried: dict[tuple[float, ...], Ranks] = {(): list_ranks(way, before, caption_image)}
    grid = product(sorted(config.mask_weights), sorted(config.prompt_weights), sorted(config.pools))
    for mask, prompt, pool in grid:
        if mask or prompt:
            one = EntityConfig(mask_weight=mask, prompt_weight=prompt, pool=pool)
            tried[mask, prompt, pool] = list_ranks(
                way, guided_lists(way, evidence, one, config.depth).lists, caption_image
            )
    best = _best(tried, config.min_gain)
    for key, ranks in tried.items():
        setting: dict[str, Any] = dict(zip(("mask_weight", "prompt_weight", "pool"), key))
        trials.append(Trial(way, "egr", setting, mean_recall(ranks), key == best))
    return EntityConfig(mask_weight=best[0], prompt_weight=best[1], pool=int(best[2])) if best else None


def _tune_bidirectional(
    way: Way, lists: Mapping[Way, Lists], caption_image: Int64, config: TuningConfig, trials: list[Trial]
) -> BidirectionalConfig:
    own, other = lists[way], lists[REVERSE[way]]
    tried: dict[tuple[int, ...], Ranks] = {(): list_ranks(way, own, caption_image)}
    for k in sorted(config.ks):
        order = bidirectional_order(own.rows, other.rows, k)
        tried[(k,)] = list_ranks(way, own.ordered(order), caption_image)
    best = _best(tried, config.min_gain)
    for key, ranks in tried.items():
        trials.append(Trial(way, "tbr", dict(zip(("k",), key)), mean_recall(ranks), key == best))
    return BidirectionalConfig(k=best[0]) if best else BidirectionalConfig(enabled=False)


def _best(tried: Mapping[Key, Ranks], min_gain: float) -> Key:
    """The first key of the most hits; the first of all, which is off, unless another gains enough over it."""
    counts = {key: hits(ranks) for key, ranks in tried.items()}
    best = max(counts, key=lambda key: counts[key])  # the first of equals
    off = next(iter(tried))
    gain = 100.0 * (counts[best] - counts[off]) / (len(DEPTHS) * max(1, len(tried[off])))
    return best if gain > min_gain else off
