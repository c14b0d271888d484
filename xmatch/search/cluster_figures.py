"""What the duplicates of a bank come to, in figures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xmatch.data.key_banks import KeyBank
from xmatch.search.near_duplicates import Clusters, smallest_similarity


class LargestCluster(NamedTuple):
    """A cluster by the id of its lowest row, its rows, and the least cosine of any two of them."""

    id: str
    rows: int
    smallest_similarity: float


class NearFigures(NamedTuple):
    """Nearly equal rows.

    Attributes:
        threshold: cosine from which they count.
        pairs: of distinct rows.
        clusters: of two rows or more, equal ones counted.
        left_out: rows that a merge would leave out.
        largest: cluster, if there is one.
    """

    threshold: float
    pairs: int
    clusters: int
    left_out: int
    largest: LargestCluster | None


class EqualFigures(NamedTuple):
    """Equal rows: those that equal a lower one, the most of one kind, and whether a search holds each kind once."""

    rows: int
    most: int
    merged_in_search: bool


def equal_figures(clusters: Clusters) -> EqualFigures:
    """Figures of the equal rows."""
    found = clusters.duplicates
    return EqualFigures(found.copies, int(found.sizes.max(initial=0)), found.are_worth_merging)


def near_figures(bank: KeyBank, clusters: Clusters, threshold: float) -> NearFigures:
    """Figures of the nearly equal rows; time grows with the square of the largest cluster."""
    lowest, counts = clusters.sizes()
    largest = None
    if len(lowest):
        members = np.intersect1d(clusters.members(lowest[0]), clusters.duplicates.representatives)
        least = smallest_similarity(bank.rows, members)
        largest = LargestCluster(bank.ids[int(lowest[0])].as_py(), int(counts[0]), least)
    left_out = int(counts.sum()) - len(counts)
    return NearFigures(threshold, len(clusters.pairs.left), len(counts), left_out, largest)
