"""The objectives of MVPTR on tensors; none of them knows a model.

Shapes: B pairs, P text places that may hold phrases, R regions, H width, N negative pairs, W words. Row i of texts and
of images belong together. What is not there (a caption without phrases, an image without regions, a pair without
negatives, a batch without masked words) contributes nothing, and a loss of nothing is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from alignment.mvptr.losses_config import MvptrLossConfig, TopRegions
from xmatch.training.losses import info_nce
from xmatch.training.recipe import SampleKey

TOP = 3
"""Regions that a phrase's score may be made of."""
IGNORED = -1
"""The label of a place that is not predicted."""
DRAWS = 7
"""Sets the numbers of this module apart from other draws by (seed, epoch, sample)."""


class Draws(NamedTuple):
    """Numbers in [0, 1) that decide what is drawn, of each sample its own, so that they can be gathered with it.

    order: (B,), by which pairs are sorted before the first half keep their text in a hard negative.
    image, text: (B,), which negative, where these are drawn. other: (B,), which other image for the phrases.
    positive, negative: (B, P), which of the best regions of each place.
    """

    order: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor
    other: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


def draws_of(samples: Sequence[int], key: SampleKey, places: int) -> Draws:
    """The draws of samples: a function of (seed, epoch, sample).

    Args:
        samples: (B,) numbers of the samples.
        key: seed and epoch.
        places: P.
    """
    rows = [np.random.default_rng((key.seed, key.epoch, int(s), DRAWS)).random(4 + 2 * places) for s in samples]
    table = torch.from_numpy(np.asarray(rows, dtype=np.float64).reshape(len(rows), 4 + 2 * places))
    order, image, text, other = (table[:, column] for column in range(4))
    return Draws(order, image, text, other, table[:, 4 : 4 + places], table[:, 4 + places :])


class Terms(NamedTuple):
    """A loss in parts: (B,) sums over places and (B,) numbers of places, float; its mean is over all places."""

    total: torch.Tensor
    places: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """A scalar, of shape (); 0 of nothing."""
        return self.total.sum() / self.places.sum().clamp_min(1.0)


def logit_scale(parameter: torch.Tensor, config: MvptrLossConfig) -> torch.Tensor:
    """The factor from similarities to logits of its logarithm, both scalars of shape ()."""
    scale = parameter.exp()
    return scale.clamp_max(config.max_logit_scale) if config.max_logit_scale else scale


def same_images(image_row: torch.Tensor, config: MvptrLossConfig) -> torch.Tensor:
    """(B, B) bool: pairs that are no negatives of each other, of (B,) numbers of the images; the diagonal is."""
    own = torch.eye(len(image_row), dtype=torch.bool, device=image_row.device)
    return own if config.same_image == "negative" else own | (image_row[:, None] == image_row[None, :])


def vsc_loss(text: torch.Tensor, image: torch.Tensor, scale: torch.Tensor, same_image: torch.Tensor) -> torch.Tensor:
    """Vision-semantic contrast: the symmetric cross-entropy of unit vectors (B, H), half of each direction."""
    return info_nce(text, image, scale, same_image)


class Negatives(NamedTuple):
    """N pairs that do not belong together.

    text, image: (N,) rows of text and image. own: (N,) the pair that each was made of: it kept its text or its image.
    exists: (N,) bool; false where the batch has no other image for the pair.
    """

    text: torch.Tensor
    image: torch.Tensor
    own: torch.Tensor
    exists: torch.Tensor


def hard_negatives(
    text: torch.Tensor,
    image: torch.Tensor,
    scale: torch.Tensor,
    same_image: torch.Tensor,
    draws: Draws,
    config: MvptrLossConfig,
) -> Negatives:
    """A negative of each pair: the first half, in drawn order, keep their text, the rest their image.

    Args:
        text: (B, H) unit vectors of the text encoder.
        image: (B, H) of the vision encoder.
        scale: scalar factor to logits, for drawn negatives.
        same_image: (B, B) bool; no negatives.
        draws: `order`, and `image` and `text` where negatives are drawn.
        config: how a negative is chosen.
    """
    similarity = (text @ image.T).detach()
    if config.hard == "sampled":
        similarity = similarity * scale.detach()
    similarity = similarity.masked_fill(same_image, float("-inf"))
    if config.hard == "hardest":
        other_image, other_text = similarity.argmax(1), similarity.argmax(0)
    else:
        other_image, other_text = _drawn(similarity, draws.image), _drawn(similarity.T, draws.text)
    order = draws.order.argsort(stable=True)
    keeps_text = torch.arange(len(order), device=order.device) < len(order) // 2
    return Negatives(
        torch.where(keeps_text, order, other_text[order]),
        torch.where(keeps_text, other_image[order], order),
        order,
        (~same_image).any(1)[order],
    )


def _drawn(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A column of each row of (B, B) logits, drawn by softmax; any of a row that has none."""
    steps = logits.double().nan_to_num(neginf=-1e4).softmax(1).masked_fill(logits.isneginf(), 0.0).cumsum(1)
    reached = steps > (uniform.to(steps)[:, None] * steps[:, -1:])
    return reached.to(torch.uint8).argmax(1)


def itm_loss(positive: torch.Tensor, negative: torch.Tensor, exists: torch.Tensor, match_label: int) -> torch.Tensor:
    """Image-text matching: cross-entropy of pairs and negatives, the mean over both.

    Args:
        positive: (B, 2) logits of pairs.
        negative: (N, 2) logits of negatives.
        exists: (N,) bool.
        match_label: the class of pairs; 0 in pre-training, 1 in retrieval.
    """
    logits = torch.cat([positive, negative]).float()
    labels = torch.cat(
        [positive.new_full((len(positive),), match_label), negative.new_full((len(negative),), 1 - match_label)]
    )
    weights = torch.cat([torch.ones_like(exists[:1]).expand(len(positive)), exists]).float()
    terms = F.cross_entropy(logits, labels.long(), reduction="none")
    return (terms * weights).sum() / weights.sum().clamp_min(1.0)


class Scores(NamedTuple):
    """(B,) how well the phrases of each row fit regions, and (B,) bool whether it has both."""

    value: torch.Tensor
    exists: torch.Tensor


def phrase_scores(
    phrases: torch.Tensor,
    phrase_mask: torch.Tensor,
    regions: torch.Tensor,
    region_mask: torch.Tensor,
    draws: torch.Tensor,
    choice: TopRegions,
) -> Scores:
    """The mean over a row's phrases of the cosine with their best regions.

    Args:
        phrases: (B, P, H).
        phrase_mask: (B, P) bool.
        regions: (B, R, H).
        region_mask: (B, R) bool.
        draws: (B, P) in [0, 1): which of the up to three best regions.
        choice: what is made of them.
    """
    cosines = F.normalize(phrases.float(), dim=-1) @ F.normalize(regions.float(), dim=-1).transpose(1, 2)
    cosines = cosines.masked_fill(~region_mask[:, None, :], float("-inf"))
    best = cosines.topk(min(TOP, cosines.shape[-1]), dim=-1).values
    there = region_mask.sum(1).clamp(max=best.shape[-1])[:, None]
    chosen = _of_best(best, there, draws, choice)
    exists = phrase_mask.any(1) & region_mask.any(1)
    values = torch.where(phrase_mask & exists[:, None], chosen, torch.zeros_like(chosen))
    return Scores(values.sum(1) / phrase_mask.sum(1).clamp_min(1), exists)


def _of_best(best: torch.Tensor, there: torch.Tensor, draws: torch.Tensor, choice: TopRegions) -> torch.Tensor:
    """(B, P) of the (B, P, 3) best cosines, of which the first `there` (B, 1) exist."""
    if choice == "max":
        return best[..., 0]
    if choice == "mean_top3":
        ranks = torch.arange(best.shape[-1], device=best.device)
        known = torch.where(ranks < there[..., None], best, torch.zeros_like(best))
        return known.sum(-1) / there.clamp_min(1)
    ranks = (draws * there).long().clamp(max=best.shape[-1] - 1)
    return best.gather(-1, ranks[..., None])[..., 0]


def other_images(same_image: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) a row of another image for each, drawn evenly by (B,) numbers in [0, 1), and (B,) whether there is one."""
    others = ~same_image
    wanted = (uniform * others.sum(1)).long() + 1
    reached = others.cumsum(1) >= wanted[:, None]
    return reached.to(torch.uint8).argmax(1), others.any(1)


def wpg_loss(positive: Scores, negative: Scores, margin: float) -> torch.Tensor:
    """Weakly supervised phrase grounding: the mean hinge over the rows that have both scores, of shape (B,)."""
    valid = (positive.exists & negative.exists).float()
    terms = F.relu(margin + negative.value - positive.value) * valid
    return terms.sum() / valid.sum().clamp_min(1.0)


def masked_rows(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the places that are predicted, of (B, L) labels."""
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    return rows, columns


def masked_terms(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, count: int) -> Terms:
    """Cross-entropies of predicted places, summed by row.

    Args:
        logits: (M, W) of the places.
        labels: (M,) words.
        rows: (M,) the row of each place.
        count: B.
    """
    terms = F.cross_entropy(logits.float(), labels, reduction="none")
    total = torch.zeros(count, device=terms.device).index_add(0, rows, terms)
    return Terms(total, torch.bincount(rows, minlength=count).to(total))
