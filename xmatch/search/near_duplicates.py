"""Keys that are nearly equal: all pairs above a cosine, and the clusters that such pairs form.

Shapes: N keys, D width, M distinct keys, P pairs.

Clusters are connected components (single linkage): two keys are in one if a chain of pairs leads from one to the
other. Chains can be long, so the two ends of a cluster may be far less alike than the threshold; `smallest_similarity`
says how far. A key of length zero has no direction, and so no cosine with any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from xmatch.search.duplicates import Duplicates, find_duplicates
from xmatch.search.scores import Float32, Float64, Int64, Rows, blocks, decode, norms
from xmatch.search.searcher import Searcher, build_searcher

QUERY_BLOCK = 4096
FIRST_DEPTH = 16
"""Neighbours asked for at first; a key that has more of them above the threshold is asked again, four times as deep."""
MOST_RESULTS = 1 << 22
"""Scores that one search may bring."""
SLACK = 1e-5
"""What a pair may lack, in parts, to be looked at in double precision: far more than a float32 score is off."""
ALIKE = 1.02
"""Keys whose norms differ by less than this factor are searched as they are stored; else by unit copies in float32."""
PAIR_ELEMENTS = 1 << 20
DENSE_ROWS = 2048


class NearPairs(NamedTuple):
    """Pairs of keys (P,) with left < right, in ascending order, and their cosines."""

    left: Int64
    right: Int64
    similarities: Float64


class Clusters(NamedTuple):
    """Keys that belong together.

    Attributes:
        labels: (N,) the lowest key of each key's cluster; a key that is like no other has itself.
        duplicates: which keys are equal.
        pairs: distinct keys (by their lowest row) that are nearly equal.
    """

    labels: Int64
    duplicates: Duplicates
    pairs: NearPairs

    def sizes(self) -> tuple[Int64, Int64]:
        """The lowest key and the number of keys of each cluster of two or more, the largest first."""
        lowest, counts = np.unique(self.labels, return_counts=True)
        lowest, counts = lowest[counts > 1], counts[counts > 1]
        order = np.lexsort((lowest, -counts))
        return lowest[order], counts[order]

    def members(self, lowest: int) -> Int64:
        """The keys of a cluster, ascending."""
        return np.flatnonzero(self.labels == lowest)


def find_clusters(
    rows: Rows,
    threshold: float,
    *,
    backend: str = "auto",
    threads: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Clusters:
    """Clusters of equal and nearly equal keys.

    Args:
        rows: (N, D) float32, float16 or bfloat16, finite.
        threshold: cosine from which two keys count as nearly equal, above 0 and at most 1.
        backend: of the search, as for `build_searcher`.
        threads: CPU threads of the search.
        advance: told how many more distinct keys have been looked up.

    Raises:
        ValueError: the threshold is out of range.
        InputError: a key is not finite.
    """
    duplicates = find_duplicates(rows)
    kept = duplicates.representatives
    found = near_pairs(rows[kept] if duplicates.copies else rows, threshold, backend, threads, advance)
    pairs = NearPairs(kept[found.left], kept[found.right], found.similarities)
    labels = np.empty(len(rows), np.int64)
    labels[duplicates.members] = np.repeat(kept, duplicates.sizes)
    return Clusters(connected(pairs.left, pairs.right, len(rows))[labels], duplicates, pairs)


def near_pairs(
    rows: Rows,
    threshold: float,
    backend: str = "auto",
    threads: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> NearPairs:
    """All pairs of keys whose cosine is the threshold or more.

    Every key is looked up among all, deeper until what comes is below the threshold, so none is missed. Cosines are
    computed in double precision. Time grows with the square of M; equal keys should be merged before.

    Args:
        rows: (M, D) float32, float16 or bfloat16, finite.
        threshold: cosine, above 0 and at most 1.
        backend: of the search.
        threads: of the search.
        advance: told how many more keys have been looked up.

    Raises:
        ValueError: the threshold is out of range.
        InputError: a key is not finite.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is a cosine above 0 and at most 1, got {threshold}")
    lengths = norms(rows)
    directed = np.flatnonzero(lengths)
    if not len(directed):
        return NearPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    shortest, longest = float(lengths[directed].min()), float(lengths.max())
    keys = rows
    if not (longest <= ALIKE * shortest and 2.0**-32 < shortest < 2.0**32):
        keys, lengths, shortest = _unit(rows), np.ones(len(rows)), 1.0
    searcher = build_searcher(keys, backend, threads)
    lines = threshold * (1 - SLACK) * shortest * lengths
    parts = []
    for start in range(0, len(directed), QUERY_BLOCK):
        asked = directed[start : start + QUERY_BLOCK]
        parts += [_decided(rows, left, right, threshold) for left, right in _neighbours(searcher, asked, lines)]
        advance(len(asked))
    left, right, similarities = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((right, left))
    return NearPairs(left[order], right[order], similarities[order])


def cosines(rows: Rows, left: Int64, right: Int64) -> Float64:
    """Cosines (P,) of pairs of rows that are not zero, in double precision."""
    found = np.empty(len(left))
    step = max(1, PAIR_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(left), step):
        a, b = (_scaled(rows[side[start : start + step]]) for side in (left, right))
        lengths = np.sqrt(np.einsum("pd,pd->p", a, a) * np.einsum("pd,pd->p", b, b))
        found[start : start + step] = np.einsum("pd,pd->p", a, b) / lengths
    return np.clip(found, -1, 1)


def smallest_similarity(rows: Rows, members: Int64) -> float:
    """The least cosine of any two of some rows, to float32's precision; time grows with the square of their number.

    A row alone is like itself: 1.
    """
    if len(members) < 2:
        return 1.0
    unit, least = _unit(rows[members]), 1.0
    for start in range(0, len(unit), DENSE_ROWS):
        for other in range(start, len(unit), DENSE_ROWS):
            least = min(least, float((unit[start : start + DENSE_ROWS] @ unit[other : other + DENSE_ROWS].T).min()))
    return least


def connected(left: Int64, right: Int64, count: int) -> Int64:
    """The lowest node (count,) of each node's connected component, given the edges' ends (P,).

    Components hook onto lower ones and paths are halved until nothing changes, all edges at once: far quicker than a
    union-find in Python.
    """
    labels = np.arange(count)
    while True:
        a, b = labels[left], labels[right]
        if np.array_equal(a, b):
            return labels
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(labels, further := labels[labels]):
            labels = further


def _neighbours(searcher: Searcher, asked: Int64, lines: Float64) -> Iterator[tuple[Int64, Int64]]:
    """Pairs (left < right) whose score reaches the left one's line, in parts."""
    depth, count = min(FIRST_DEPTH, len(searcher.keys)), len(searcher.keys)
    while len(asked):
        left: list[Int64] = []
        step = max(1, MOST_RESULTS // depth)
        for start in range(0, len(asked), step):
            part = asked[start : start + step]
            found = searcher.search(decode(searcher.keys[part]), depth)
            is_near = found.scores >= lines[part, None]
            is_open = is_near[:, -1] & (depth < count)
            left.append(part[is_open])
            is_near &= ~is_open[:, None] & (found.ids > part[:, None])
            place, rank = np.nonzero(is_near)
            yield part[place], found.ids[place, rank]
        asked, depth = np.concatenate(left), min(count, 4 * depth)


def _decided(rows: Rows, left: Int64, right: Int64, threshold: float) -> NearPairs:
    similarities = cosines(rows, left, right)
    kept = similarities >= threshold
    return NearPairs(left[kept], right[kept], similarities[kept])


def _scaled(rows: Rows) -> Float64:
    """Rows in double precision, each divided by its largest value, so that no square is lost."""
    wide = decode(rows).astype(np.float64)
    largest = np.abs(wide).max(1, keepdims=True, initial=0)
    return wide / np.where(largest > 0, largest, 1)


def _unit(rows: Rows) -> Float32:
    """Rows of length 1, zeros as they are; a copy in float32."""
    unit = np.empty(rows.shape, np.float32)
    for start, block in blocks(rows):
        wide = _scaled(block)
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        unit[start : start + len(block)] = wide / np.where(lengths > 0, lengths, 1)[:, None]
    return unit
