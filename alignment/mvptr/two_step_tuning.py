"""How much the coarse score counts beside the fine one, chosen on a validation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignment.mvptr.two_step import ordered_pool
from alignment.rerank.candidates import WAYS, Float32, Int64, Lists, Way
from alignment.rerank.figures import list_ranks, mean_recall
from alignment.rerank.tuned_file import TunedFile, read_settings
from alignment.rerank.tuning import hits
from xmatch.errors import InputError

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """What is tried."""

    weights: tuple[float, ...] = WEIGHTS
    """Of the coarse score, a cosine, beside the fine one, a probability; 0, the fine one alone, is always tried."""

    def __post_init__(self) -> None:
        """Weights are not negative."""
        if any(weight < 0 for weight in self.weights):
            raise InputError(f"fusion weights must not be negative, got {list(self.weights)}.")


class FusionTrial(NamedTuple):
    """One weight that was tried: direction, weight, mean of R@1, R@5 and R@10 in per cent, whether it was chosen."""

    way: Way
    weight: float
    mean_recall: float
    is_taken: bool


class TunedFusion(NamedTuple):
    """The weight of each direction, and all that was tried."""

    weights: dict[Way, float]
    trials: list[FusionTrial]


def tune_fusion(
    pools: Mapping[Way, Lists], fine: Mapping[Way, Float32], caption_image: Int64, config: FusionConfig
) -> TunedFusion:
    """The weight of each direction that finds most on this split; of equal ones the smallest.

    Args:
        pools: of both directions.
        fine: scores of their places.
        caption_image: (M,) row of each caption's image.
        config: what is tried.
    """
    weights: dict[Way, float] = {}
    trials: list[FusionTrial] = []
    for way in WAYS:
        tried = {
            weight: list_ranks(way, ordered_pool(pools[way], fine[way], weight), caption_image)
            for weight in sorted({0.0, *config.weights})
        }
        counts = {weight: hits(ranks) for weight, ranks in tried.items()}
        weights[way] = max(counts, key=lambda weight: counts[weight])  # the first of equals
        trials += [
            FusionTrial(way, weight, mean_recall(ranks), weight == weights[way]) for weight, ranks in tried.items()
        ]
    return TunedFusion(weights, trials)


def read_fusion(place: str) -> TunedFile[dict[Way, float]]:
    """Weights that an earlier tuning chose.

    Args:
        place: `tuned.json`, or its folder.

    Raises:
        InputError: it is not there, is of another re-ranking, or its record is missing or another one.
    """
    return read_settings(place, _weights, "jobs/eval_retrieval.py --rerank mvptr --two_step.action tune")


def _weights(settings: dict[str, Any]) -> dict[Way, float]:
    coarse = settings["coarse_weight"]
    return {way: float(coarse[way]) for way in WAYS}


def plain_fusion(weights: Mapping[Way, float]) -> dict[str, Any]:
    """Weights as the file of tuned settings has them."""
    return {"coarse_weight": dict(weights)}
