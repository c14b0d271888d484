"""Which token of one tokenizer each token of another takes after, by the characters they stand for; pure arithmetic.

Shapes: N old tokens, M new tokens, L lines.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
NOWHERE = np.int64(1 << 40)
"""A gap wider than any text."""


class Spans(NamedTuple):
    """Characters from `starts` to before `ends`, (N,) int64 each; a span may be empty."""

    starts: Int64
    ends: Int64


class Alignment(NamedTuple):
    """What each new token takes after.

    Attributes:
        rows: (M,) int64, the old token.
        overlaps: (M,) bool, whether the two share a character.
    """

    rows: Int64
    overlaps: npt.NDArray[np.bool_]


def align_lines(old: Spans, old_counts: Int64, new: Spans, new_counts: Int64) -> Alignment:
    """`align` for the tokens of many lines, laid end to end; no token takes after one of another line.

    Args:
        old: spans of all old tokens, each within its own line.
        old_counts: (L,) old tokens of each line.
        new: spans of all new tokens.
        new_counts: (L,) new tokens of each line.

    Raises:
        ValueError: a line has new tokens and no old one.
    """
    if (new_counts[old_counts == 0] > 0).any():
        raise ValueError("a line with new tokens needs an old one that they can take after")
    lines = np.arange(len(old_counts))
    old_line, new_line = np.repeat(lines, old_counts), np.repeat(lines, new_counts)
    width = np.zeros(len(lines) + 1, np.int64)
    np.maximum.at(width, old_line, old.ends)
    np.maximum.at(width, new_line, new.ends)
    # between two lines lies more room than any gap within one of them
    base = np.concatenate([[0], np.cumsum(2 * width[:-1] + width[1:] + 1)])
    shifted = [
        in_order(Spans(spans.starts + base[line], spans.ends + base[line]))
        for spans, line in ((old, old_line), (new, new_line))
    ]
    return align(*shifted)


def in_order(spans: Spans) -> Spans:
    """Spans whose starts and ends never step back. Those of fast tokenizers do not; whatever else comes is mended."""
    return Spans(
        np.maximum.accumulate(spans.starts, dtype=np.int64),
        np.maximum.accumulate(np.maximum(spans.starts, spans.ends), dtype=np.int64),
    )


def align(old: Spans, new: Spans) -> Alignment:
    """The old token that each new token takes after, both in reading order.

    It is the one with which the new token shares most characters, or the nearest where it shares none: the one that
    maximises min(ends) - max(starts). Among equals it is the token of the very same characters (of several tokens that
    are pieces of one character the first, the second, …), else the earliest. The old tokens chosen never step back:
    that function has increasing differences, so its maxima ascend (Topkis 1978).

    Args:
        old: N spans whose starts and whose ends never step back, N at least 1 if M is.
        new: M such spans.
    """
    if not len(new.starts):
        return Alignment(np.zeros(0, np.int64), np.zeros(0, np.bool_))
    candidates, gaps = _nearest(old, new)
    choice = np.argmin(gaps, axis=0)  # the first of equals: left before within before right
    columns = np.arange(len(choice))
    rows = _of_the_same_characters(old, new, candidates[choice, columns])
    return Alignment(np.maximum.accumulate(rows), gaps[choice, columns] < 0)


def _nearest(old: Spans, new: Spans) -> tuple[Int64, Int64]:
    """The best old token to the left of each new one, among those that meet it, and to the right; (3, M) each.

    Returns:
        Rows, and gaps in characters: shared characters count as negative, NOWHERE where there is no such token.
    """
    count = len(old.starts)
    first, stop = np.searchsorted(old.ends, new.starts, "right"), np.searchsorted(old.starts, new.ends, "left")
    rows = np.zeros((3, len(new.starts)), np.int64)
    gaps = np.full(rows.shape, NOWHERE)
    has_left, meets, has_right = first > 0, first < stop, stop < count
    left_ends = old.ends[first[has_left] - 1]
    rows[0, has_left] = np.searchsorted(old.ends, left_ends, "left")
    gaps[0, has_left] = new.starts[has_left] - left_ends
    rows[1, meets], gaps[1, meets] = _most_shared(
        old, Spans(new.starts[meets], new.ends[meets]), first[meets], stop[meets]
    )
    rows[2, has_right] = stop[has_right]
    gaps[2, has_right] = old.starts[stop[has_right]] - new.ends[has_right]
    return rows, gaps


def _most_shared(old: Spans, new: Spans, first: Int64, stop: Int64) -> tuple[Int64, Int64]:
    """For each new token, which of the old tokens first … stop - 1 shares most with it, and minus how many."""
    if not len(first):
        return first, first
    counts = stop - first
    starts = np.cumsum(counts) - counts
    pair = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(counts.sum()) - np.repeat(starts - first, counts)
    shared = np.minimum(old.ends[row], new.ends[pair]) - np.maximum(old.starts[row], new.starts[pair])
    most = np.maximum.reduceat(shared, starts)
    best = np.flatnonzero(shared == most[pair])
    _, earliest = np.unique(pair[best], return_index=True)
    return row[best[earliest]], -most


def _of_the_same_characters(old: Spans, new: Spans, rows: Int64) -> Int64:
    """`rows`, but an old token of the very same characters where there is one; of several, each in its turn."""
    first, stop = _equal_to(old, new)
    turn = np.arange(len(rows)) - _equal_to(new, new)[0]
    return np.where(first < stop, np.minimum(first + turn, stop - 1), rows)


def _equal_to(spans: Spans, wanted: Spans) -> tuple[Int64, Int64]:
    """Where in `spans` those equal to each of `wanted` begin and stop: they lie side by side."""
    first = np.maximum(
        np.searchsorted(spans.starts, wanted.starts, "left"), np.searchsorted(spans.ends, wanted.ends, "left")
    )
    stop = np.minimum(
        np.searchsorted(spans.starts, wanted.starts, "right"), np.searchsorted(spans.ends, wanted.ends, "right")
    )
    return first, stop
