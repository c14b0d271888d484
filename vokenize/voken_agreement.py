"""How far two voken runs over one corpus agree; added up part by part.

Shapes: Q queries (tokens, or pieces), k images per query, L lines, N images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vokenize.voken_measures import Figures

Int64 = npt.NDArray[np.int64]
COMPARED_AT_ONCE = 1 << 22
"""Pairs of vokens in memory."""


def shared_vokens(one: Int64, other: Int64) -> Int64:
    """(Q,) how many images two lists of k have in common, (Q, k) each; no list names an image twice."""
    k = max(1, one.shape[1])
    step = max(1, COMPARED_AT_ONCE // (k * k))
    found = [
        (one[start : start + step, :, None] == other[start : start + step, None, :]).sum((1, 2))
        for start in range(0, len(one), step)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def kappa(equal: int, queries: int, one: Int64, other: Int64) -> float | None:
    """Cohen's kappa of the best images: agreement beyond that of two runs that only share how often they use each.

    (p_o - p_e) / (1 - p_e), p_o the share of equal choices, p_e = sum of one_i other_i / Q^2 (Cohen 1960).

    Args:
        equal: queries with one best image in both.
        queries: Q.
        one: (N,) how often each image is the first run's best.
        other: (N,) the second's.

    Returns:
        Null where chance alone gives full agreement, or there are no queries.
    """
    by_chance = float(one.astype(np.float64) @ other.astype(np.float64)) / queries**2 if queries else 1.0
    return (equal / queries - by_chance) / (1 - by_chance) if by_chance < 1 else None


class Agreement:
    """Adds up how far two runs agree at one level.

    Args:
        images: of the key bank both searched.
        k: images per query compared, the smaller of both runs'.
    """

    def __init__(self, images: int, k: int) -> None:
        self.k, self.queries, self.equal, self.shared = k, 0, 0, 0.0
        self.lines, self.equal_by_line, self.shared_by_line = 0, 0.0, 0.0
        self.best = np.zeros((2, images), np.int64)

    def add(self, one: Int64, other: Int64, per_line: Int64) -> None:
        """Count a part.

        Args:
            one: (Q, k1) vokens of the first run, best first.
            other: (Q, k2) of the second.
            per_line: (L,) queries of each line.

        Raises:
            ValueError: the numbers of queries differ.
        """
        if not len(one) == len(other) == per_line.sum():
            raise ValueError(f"{len(one)} and {len(other)} queries cannot be those of lines with {per_line.sum()}")
        equal = one[:, 0] == other[:, 0]
        shared = shared_vokens(one[:, : self.k], other[:, : self.k]) / self.k
        self.queries += len(one)
        self.equal += int(equal.sum())
        self.shared += float(shared.sum())
        for row, run in enumerate((one, other)):
            self.best[row] += np.bincount(run[:, 0], minlength=self.best.shape[1])
        line = np.repeat(np.arange(len(per_line)), per_line)
        there = np.maximum(per_line, 1)
        self.lines += int(np.count_nonzero(per_line))
        self.equal_by_line += float((np.bincount(line, equal, len(per_line)) / there).sum())
        self.shared_by_line += float((np.bincount(line, shared, len(per_line)) / there).sum())

    def figures(self) -> Figures:
        """Shares of equal best images and of common images among k, over queries and over lines, and kappa."""
        queries, lines = max(1, self.queries), max(1, self.lines)
        return {
            "queries": self.queries,
            "k": self.k,
            "same_best": self.equal / queries,
            "overlap_at_k": self.shared / queries,
            "same_best_by_line": self.equal_by_line / lines,
            "overlap_at_k_by_line": self.shared_by_line / lines,
            "kappa": kappa(self.equal, self.queries, *self.best),
        }
