"""Lists of different lengths as one flat array and a length each; pure arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def starts_of(lengths: Int64) -> Int64:
    """(n,) int64, where each list starts in the flat array, of (n,) lengths."""
    starts: Int64 = np.cumsum(lengths) - lengths
    return starts


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """The places start, start + 1, … of every list, one list after the other.

    Args:
        starts: (n,) int64.
        lengths: (n,) int64, 0 or more.

    Returns:
        (sum of lengths,) int64.
    """
    places: Int64 = np.repeat(starts - starts_of(lengths), lengths) + np.arange(int(lengths.sum()))
    return places


def distinct(values: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Equal lists found.

    Args:
        values: all lists end to end.
        lengths: (n,) of each.

    Returns:
        (u,) int64, the first of each distinct list, ascending; (n,) int64, for each list its place among these.
    """
    data, size = values.tobytes(), values.itemsize
    known: dict[bytes, int] = {}
    ends = np.cumsum(lengths)
    cuts = zip((size * (ends - lengths)).tolist(), (size * ends).tolist(), strict=True)
    which = np.fromiter((known.setdefault(data[a:b], len(known)) for a, b in cuts), np.int64, len(lengths))
    return np.unique(which, return_index=True)[1].astype(np.int64), which
