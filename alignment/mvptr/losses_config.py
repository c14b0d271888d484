"""Which losses of MVPTR are summed up, with which weights, and the choices within them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmatch.errors import InputError

LossName = Literal["mcr", "vsc", "mlm", "itm", "wpg", "qa"]
LOSS_NAMES: tuple[LossName, ...] = ("mcr", "vsc", "mlm", "itm", "wpg", "qa")
CAPTIONS: tuple[LossName, ...] = ("mcr", "vsc", "mlm", "itm", "wpg")
"""What is learnt from captions; questions with their answers add `qa`."""
ONE_SIDED: tuple[LossName, ...] = ("mcr", "vsc")
"""The first stage of the paper: what text and vision encoder learn without the cross encoder."""
CROSS_MODAL: tuple[LossName, ...] = ("mlm", "itm", "wpg", "qa")
"""What its second stage adds."""
RETRIEVAL: tuple[LossName, ...] = ("vsc", "itm")
"""What retrieval is fine-tuned with."""
TopRegions = Literal["random_of_top3", "max", "mean_top3"]


@dataclass(frozen=True, kw_only=True)
class MvptrLossConfig:
    """Losses, weights and choices; the published total has every weight 1."""

    use: tuple[LossName, ...] = CAPTIONS
    """The losses that are switched on. One of weight 0 is off, too: off means not computed at all."""
    mcr: float = 1.0
    """Weight: masked tags are predicted by the vision encoder."""
    vsc: float = 1.0
    """Weight: texts and images of a batch find each other by their own encoders' vectors (InfoNCE)."""
    mlm: float = 1.0
    """Weight: masked words are predicted by the cross encoder."""
    itm: float = 1.0
    """Weight: the cross encoder tells pairs from hard negatives."""
    wpg: float = 1.0
    """Weight: phrases are nearer to regions of their own image than to those of another (hinge)."""
    qa: float = 1.0
    """Weight: the cross encoder tells right answers from wrong ones, which half of the questions get."""
    negatives: Literal["global", "local"] = "global"
    """`global`: the rows of all workers. `local`: each worker's own, as in the original."""
    same_image: Literal["excluded", "negative"] = "excluded"
    """`negative`: captions of one image are each other's negatives, as in the original."""
    hard: Literal["hardest", "sampled"] = "hardest"
    """Which negative a text or image gets: the most similar one, or one drawn by softmax of the scaled similarity."""
    max_logit_scale: float = 100.0
    """Greatest factor from similarities to logits; 0: none, as in the original."""
    wpg_margin: float = 0.2
    wpg_regions: TopRegions = "random_of_top3"
    """What a phrase's score is made of: one of its three most similar regions drawn evenly, as in the original, the
    most similar one, or the mean of the three. An image of fewer regions has those that it has."""
    wpg_negatives: Literal["other_image", "hard"] = "other_image"
    """`other_image`: the same phrases with the regions of another image drawn from the batch, each in its own pair.
    `hard`: phrases and regions within the hard negative pairs. The original calls them sample and hard."""
    wpg_layer: int | None = None
    """Layer of the cross encoder, from 0, whose outputs are compared; null: the last."""
    wpg_pairing: Literal["own", "as_drawn"] = "own"
    """With hard negatives, `as_drawn` sets pair k of the batch against the k-th negative in the drawn order, as the
    original does, which may come of another pair."""

    def __post_init__(self) -> None:
        """Refuse weights and switches that cannot be meant."""
        if unknown := [name for name in self.use if name not in LOSS_NAMES]:
            raise InputError(f"losses.use has {unknown[0]!r}; choose of {', '.join(LOSS_NAMES)}.")
        if min(self.weight(name) for name in LOSS_NAMES) < 0 or self.max_logit_scale < 0:
            raise InputError("losses: weights and max_logit_scale must not be negative.")
        if not self.active:
            raise InputError("losses: every loss is off; switch one on in losses.use, with a weight above 0.")

    def weight(self, name: LossName) -> float:
        """The weight of a loss."""
        weight: float = getattr(self, name)
        return weight

    @property
    def active(self) -> tuple[LossName, ...]:
        """The losses that are computed."""
        return tuple(name for name in LOSS_NAMES if name in self.use and self.weight(name) > 0)

    @property
    def needs_pairs(self) -> bool:
        """Whether pairs go through the cross encoder."""
        return any(name in self.active for name in CROSS_MODAL)

    @property
    def needs_negatives(self) -> bool:
        """Whether hard negatives go through the cross encoder."""
        return "itm" in self.active or ("wpg" in self.active and self.wpg_negatives == "hard")
