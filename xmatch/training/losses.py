"""Matching losses on embeddings; none of them knows a model.

Shapes: B pairs, L tokens, D the shared space. Row i of `text` and of `image` belong together.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from xmatch.errors import InputError


def pair_scores(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The score of every pair: the inner product, of several views of an image the greatest.

    Args:
        text: (T, E).
        image: (I, E), or (I, V, E) of V views.

    Returns:
        (T, I).
    """
    if image.ndim == 2:
        return text @ image.T
    return torch.einsum("te,ive->tiv", text, image).amax(-1)


def own_scores(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The scores (B,) of text i (B, E) with image i (B, E) or (B, V, E)."""
    if image.ndim == 2:
        return (text * image).sum(-1)
    return (text[:, None] * image).sum(-1).amax(-1)


def _partners(batch: int) -> torch.Tensor:
    """Row of each sample's partner, of shape (batch,)."""
    if batch % 2:
        raise InputError(f"paired losses need an even batch, got {batch}: choose an even batch_size per worker.")
    return torch.arange(batch).roll(batch // 2)


def paired_hinge(text: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, margin: float) -> torch.Tensor:
    """Vokenization's loss: each token against its own image and the image of one partner sentence.

    Sample i is paired with i + B/2 (modulo B); an odd last sample of a batch is left out. Golden `token_case_*`.

    Args:
        text: (B, L, D) unit token embeddings.
        image: (B, D) unit image embeddings.
        mask: (B, L), 1 for real tokens, special tokens included.
        margin: of the hinge.
    """
    text, image, mask = _even(text), _even(image), _even(mask)
    positive = torch.einsum("bld,bd->bl", text, image)
    negative = torch.einsum("bld,bd->bl", text, image[_partners(len(image)).to(image.device)])
    weights = mask.to(text.dtype)
    return (weights * F.relu(margin - positive + negative)).sum() / weights.sum().clamp_min(1.0)


def sentence_paired_hinge(
    text: torch.Tensor, image: torch.Tensor, margin: float, *, reduction: Literal["sum", "mean"] = "mean"
) -> torch.Tensor:
    """Maria's loss: each sentence against its own image and its partner's.

    Args:
        text: (B, D) unit sentence embeddings.
        image: (B, D) unit image embeddings, or (B, V, D) of V views.
        margin: of the hinge.
        reduction: "sum" is the original's, which grows with the batch (golden `sent_case_C`).
    """
    text, image = _even(text), _even(image)
    negative = image[_partners(len(image)).to(image.device)]
    terms = F.relu(margin - own_scores(text, image) + own_scores(text, negative))
    return terms.sum() if reduction == "sum" else terms.sum() / max(1, len(terms))


def _even(rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, ...) without the last where B is odd."""
    return rows[: len(rows) - len(rows) % 2]


def batchwise_hinge(text: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, margin: float) -> torch.Tensor:
    """All other images as negatives of each token, and all other sentences' tokens as negatives of each image.

    This is what the original documents; its code is broken there (golden `batchwise_hinge_*`).

    Args:
        text: (B, L, D) unit token embeddings.
        image: (B, D) unit image embeddings.
        mask: (B, L), 1 for real tokens.
        margin: of the hinge.
    """
    batch = len(image)
    scores = torch.einsum("ild,jd->ijl", text, image)  # sentence i, image j, token l
    positive = torch.einsum("bld,bd->bl", text, image)
    weights = mask.to(text.dtype)
    others = (~torch.eye(batch, dtype=torch.bool, device=image.device)).to(text.dtype)[:, :, None]
    by_text = (F.relu(margin - positive[:, None, :] + scores) * weights[:, None, :] * others).sum()
    by_image = (F.relu(margin - positive[None, :, :] + scores) * weights[:, None, :] * others).sum()
    return (by_text + by_image) / (batch * weights.sum()).clamp_min(1.0)


def info_nce(
    text: torch.Tensor, image: torch.Tensor, logit_scale: torch.Tensor, same_image: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy over all pairs of the batch (CLIP; Radford et al. 2021, figure 3).

    Args:
        text: (B, D) unit sentence embeddings.
        image: (B, D) unit image embeddings, or (B, V, D) of V views.
        logit_scale: scalar factor from scores to logits.
        same_image: (B, B) bool; captions of one image are not each other's negatives.
    """
    others_of_image = same_image & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
    logits = (pair_scores(text, image) * logit_scale).masked_fill(others_of_image, float("-inf"))
    own = torch.arange(len(text), device=text.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def sigmoid_pairs(
    text: torch.Tensor,
    image: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    same_image: torch.Tensor,
) -> torch.Tensor:
    """Each pair of the batch as a yes-or-no question (SigLIP; Zhai et al. 2023, algorithm 1).

    Args:
        text: (B, D) unit sentence embeddings.
        image: (B, D) unit image embeddings, or (B, V, D) of V views.
        logit_scale: scalar factor from scores to logits.
        logit_bias: scalar added to the logits.
        same_image: (B, B) bool; other captions' copies of the same image are left out.

    Returns:
        The sum over all pairs divided by B.
    """
    own = torch.eye(len(text), dtype=torch.bool, device=text.device)
    signs = torch.where(own, 1.0, -1.0).to(text.dtype)
    terms = -F.logsigmoid(signs * (pair_scores(text, image) * logit_scale + logit_bias))
    return terms.masked_fill(same_image & ~own, 0.0).sum() / len(text)


Reduction = Literal["mean", "sum"]


def all_negatives_hinge(
    text: torch.Tensor, image: torch.Tensor, margin: float, same_image: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Hinge over all negatives of the batch, both directions (VSE++, equation 5).

    Args:
        text: (B, D) unit sentence embeddings.
        image: (B, D) unit image embeddings, or (B, V, D) of V views.
        margin: of the hinge.
        same_image: (B, B) bool; such pairs are no negatives.
        reduction: "mean" over the pairs that count; "sum" as in the originals (golden `vse_losses`, sum), 2 B (B - 1)
            margin when all scores are equal.
    """
    scores = pair_scores(text, image)
    own, others = scores.diagonal(), (~same_image).to(scores.dtype)
    terms = F.relu(margin - own[:, None] + scores) + F.relu(margin - own[None, :] + scores)
    total = (terms * others).sum()
    return total if reduction == "sum" else total / others.sum().clamp_min(1.0)


def hardest_triplet(
    text: torch.Tensor, image: torch.Tensor, margin: float, same_image: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Hinge against the hardest negative of the batch in each direction (VSE++, equation 6).

    Args:
        text: (B, D) unit sentence embeddings.
        image: (B, D) unit image embeddings, or (B, V, D) of V views.
        margin: of the hinge.
        same_image: (B, B) bool; such pairs are no negatives.
        reduction: "mean" over pairs; "sum" as in the originals (golden `vse_losses`, max_violation), 2 B margin when
            all scores are equal.
    """
    scores = pair_scores(text, image)
    own = scores.diagonal()
    negatives = scores.masked_fill(same_image, float("-inf"))
    hardest_image, hardest_text = negatives.max(1).values, negatives.max(0).values
    terms = F.relu(margin - own + hardest_image) + F.relu(margin - own + hardest_text)
    return terms.sum() if reduction == "sum" else terms.mean()
