"""Text-image bidirectional re-ranking: a candidate that finds the query in turn moves up.

The rule of AGREE (examples/agree of EasyNLP), for a query q, its list L(q), and the lists R(c) of its candidates, all
cut at k:

1. Where the best candidate's own list begins with q, L(q) stays as it is.
2. Else the candidate at place r (from 0) gets (r + b) / 2, b being the place of q in R(c).
3. The list is sorted by that, ascending; equal values stay in their order.

Candidates whose lists do not hold q go last, in their order; as the original gives them b = 10,000, the two agree up
to k = 5,000. Places beyond k stay behind. Both directions use the lists of the other as they were before.

It may lower recall: a query whose match came first loses it to a candidate that prefers the query more.
Shapes: Q queries, C candidates, K places of a list, R places of a candidate's list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignment.rerank.candidates import EMPTY, Int64, Lists, named
from xmatch.errors import InputError

ABSENT = np.iinfo(np.int32).max
"""Place of a query in a list that does not hold it."""
BLOCK_ELEMENTS = 1 << 22
"""Pairs of places that are compared at a time: 32 MiB."""


def reverse_places(own: Int64, reverse: Int64) -> Int64:
    """Where each candidate's list holds the query.

    Args:
        own: (Q, K) rows of candidates; EMPTY where there is none.
        reverse: (C, R) rows of queries.

    Returns:
        (Q, K) places from 0, the first where there are several; ABSENT where it is not held.
    """
    found = np.full(own.shape, ABSENT, np.int64)
    if not own.size or not reverse.size:
        return found
    step = max(1, BLOCK_ELEMENTS // (own.shape[1] * reverse.shape[1]))
    for start in range(0, len(own), step):
        part = own[start : start + step]
        queries = np.arange(start, start + len(part))
        is_held = reverse[part] == queries[:, None, None]
        places = np.where(is_held.any(2), is_held.argmax(2), ABSENT)
        found[start : start + step] = np.where(part == EMPTY, ABSENT, places)
    return found


def bidirectional_order(own: Int64, reverse: Int64, k: int) -> Int64:
    """The order in which bidirectional re-ranking puts every list.

    Args:
        own: (Q, K) rows of candidates, best first.
        reverse: (C, R) rows of queries, best first.
        k: places of either list that count, at least 1.

    Returns:
        (Q, K) places of `own`, a permutation in every row.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    depth = min(k, own.shape[1])
    places = reverse_places(own[:, :depth], reverse[:, :k])
    values = np.where(places == ABSENT, ABSENT, places + np.arange(depth))  # halves do not change the order
    values[own[:, :depth] == EMPTY] = ABSENT + 1
    is_mutual = places[:, :1] == 0
    kept = np.broadcast_to(np.arange(depth), values.shape)
    order = np.where(is_mutual, kept, np.argsort(values, axis=1, kind="stable"))
    beyond = np.broadcast_to(np.arange(depth, own.shape[1]), (len(own), own.shape[1] - depth))
    return np.concatenate([order, beyond], 1)


def rerank_bidirectional(own: Lists, reverse: Lists, item_ids: Sequence[str], k: int) -> Lists:
    """Lists in the order of bidirectional re-ranking; scores move with their candidates.

    Args:
        own: (Q, K) lists to be re-ranked.
        reverse: (C, R) lists of the candidates.
        item_ids: C ids, for the message.
        k: places of either list that count, at least 1.

    Raises:
        InputError: candidates without a list of their own; counted and named.
    """
    used = np.unique(own.rows[:, :k])
    used = used[used != EMPTY]
    lacking = used if not reverse.rows.shape[1] else used[reverse.rows[used, 0] == EMPTY]
    if len(lacking):
        raise InputError(
            f"bidirectional re-ranking needs the list of every candidate, but "
            f"{named([item_ids[row] for row in lacking], 'candidates')} have none. Give predictions of all of them, or "
            "switch it off for this direction."
        )
    return own.ordered(bidirectional_order(own.rows, reverse.rows, k))
