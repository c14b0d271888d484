"""Long lines cut into encoder windows, and joined again; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")
WindowPolicy = Literal["original", "balanced"]


def window_lengths(count: int, limit: int, policy: WindowPolicy = "balanced") -> list[int]:
    """Lengths of the pieces of a line.

    Args:
        count: tokens of the line, without special tokens.
        limit: most tokens in a piece.
        policy: "balanced" makes pieces that differ by at most one token; "original" cuts at floor(count / pieces) and
            leaves what is over as one more piece (golden `segment_lengths`: 129 at 128 gives 64, 64, 1).

    Returns:
        Positive lengths whose sum is `count`; none for an empty line.

    Raises:
        ValueError: limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"a window must hold at least one token, got {limit}")
    if count == 0:
        return []
    pieces = -(-count // limit)
    if policy == "original":
        size = count // pieces
        full, over = divmod(count, size)
        return [size] * full + ([over] if over else [])
    size, longer = divmod(count, pieces)
    return [size + 1] * longer + [size] * (pieces - longer)


def cut(items: Sequence[T], lengths: Sequence[int]) -> list[Sequence[T]]:
    """Consecutive pieces of the given lengths.

    Raises:
        ValueError: the lengths do not sum to the number of items.
    """
    if sum(lengths) != len(items):
        raise ValueError(f"pieces of {sum(lengths)} in all cannot cut {len(items)} items")
    pieces, start = [], 0
    for length in lengths:
        pieces.append(items[start : start + length])
        start += length
    return pieces
