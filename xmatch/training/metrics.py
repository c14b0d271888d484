"""Figures of a training batch: how often the true image is among the best of the batch."""

from __future__ import annotations

from typing import Literal

import torch


def in_batch_ranks(text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """1-based rank of each position's true image among the images of the batch.

    Args:
        text: (B, L, D) token embeddings.
        image: (B, D) image embeddings.

    Returns:
        (B, L) int64: one more than the number of images with a greater score.
    """
    scores = torch.einsum("ild,jd->ilj", text, image)
    own = scores.diagonal(dim1=0, dim2=2).T  # (B, L), taken from the same products, so that equal scores stay equal
    return (scores > own[..., None]).sum(-1) + 1


def batchwise_recall(
    text: torch.Tensor,
    image: torch.Tensor,
    mask: torch.Tensor,
    k: int,
    definition: Literal["correct", "original"] = "correct",
) -> float:
    """Share of masked-in positions whose true image is among the batch's best k.

    Args:
        text: (B, L, D) token embeddings; a sentence is a position of its own, (B, 1, D).
        image: (B, D) image embeddings.
        mask: (B, L), 1 where a position counts.
        k: at least 1.
        definition: "original" compares with the (k + 1)-th best score, so it is recall at k + 1 (golden
            `batchwise_recall_as_implemented`).
    """
    depth = k + 1 if definition == "original" else k
    hits = (in_batch_ranks(text, image) <= depth).to(torch.float64) * mask
    return float(hits.sum() / mask.sum())


def batchwise_accuracy(text: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of masked-in positions (B, L) whose best image within the batch is the true one; as `batchwise_recall`."""
    return batchwise_recall(text, image, mask, 1)
