"""Context-level alignment (CRA): the whole of one side belongs to the parts of the other.

Shapes: B pairs, N parts (regions, or words), D width.
"""

from __future__ import annotations

import torch

OWN_LOGIT = -10.0
"""What the original puts in place of a pair's own logits among the negatives."""


def context_loss(
    guides: torch.Tensor,
    parts: torch.Tensor,
    mask: torch.Tensor,
    same_image: torch.Tensor,
    *,
    temperature: float,
    negatives: int,
    legacy_negatives: bool = False,
) -> torch.Tensor:
    """InfoNCE of each guide with each part of its pair, against the hardest parts of others (golden `selfalign`, cra).

    Each real part has its own term: it against the pool, which is the same for all parts of a pair. What is padded is
    neither a part nor a negative, and nor are the parts of other rows of the same image.

    Args:
        guides: (B, D) unit vectors of one side.
        parts: (B, N, D) unit vectors of the other.
        mask: (B, N) bool, true for real parts.
        same_image: (B, B) bool with a true diagonal; such pairs are no negatives.
        temperature: divides the scores.
        negatives: size of the pool; all there are where they are fewer.
        legacy_negatives: leave the pair's own parts in the pool, with a logit of -10.

    Returns:
        The mean over pairs of the mean over their real parts, a scalar.
    """
    batch, count = mask.shape
    logits = torch.einsum("bd,cnd->bcn", guides, parts) / temperature
    own = torch.arange(batch, device=logits.device)
    pool = logits.masked_fill(same_image[..., None] | ~mask[None], -torch.inf)
    if legacy_negatives:
        pool = pool.index_put((own, own), torch.full_like(mask, OWN_LOGIT, dtype=pool.dtype))
    hardest = pool.reshape(batch, -1).topk(min(negatives, batch * count), dim=1).values
    positive = logits[own, own]
    against = hardest.logsumexp(1, keepdim=True)
    terms = torch.logaddexp(positive, against) - positive
    counts = mask.sum(1).clamp_min(1).to(terms.dtype)
    return (terms.masked_fill(~mask, 0.0).sum(1) / counts).mean()
