"""Soft assignments of samples to prototypes that use every prototype alike: Sinkhorn's iterations."""

from __future__ import annotations

import torch


@torch.no_grad()
def soft_assignments(scores: torch.Tensor, *, epsilon: float, iterations: int) -> torch.Tensor:
    """Assignments that favour high scores, of nearly equal total weight for every prototype (golden `selfalign`, lca).

    Q = exp(scores / epsilon) is scaled in turn so that all prototypes have the same sum, and all samples. This is
    done with logarithms, so that neither a large score nor a large batch overflows in float32. The samples are to be
    those of all workers: the sums run over them (Cuturi 2013; Caron et al. 2020, algorithm 1).

    Args:
        scores: (N, P) float, of N samples with P prototypes; takes no part in gradients.
        epsilon: temperature of the assignment, above 0; small ones make it sharp.
        iterations: how often both sums are set, at least 1.

    Returns:
        (N, P) float32; rows sum to 1.
    """
    logarithms = scores.float() / epsilon
    for _ in range(iterations):
        logarithms = logarithms - logarithms.logsumexp(0, keepdim=True)
        logarithms = logarithms - logarithms.logsumexp(1, keepdim=True)
    return logarithms.exp()
