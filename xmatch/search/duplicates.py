"""Keys that are equal: found once, stored once for the scan, and put back into every answer.

Shapes: N keys, M distinct keys, Q queries, k results.

Rows are equal if all their values are; -0 equals 0. Equal keys have equal scores with every query, so a bank may be
scanned with one key of each kind: its lowest row stands for all. Let the k best distinct rows be known, ordered by
score and then by the row that stands for them. A distinct row c that is not among them comes after k rows that stand
for others; each row equal to c has the score of c and a number that is no lower, so it comes after these k rows too.
The k best of all rows are therefore among the rows that the k best distinct rows stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from xmatch.search.exact import Found, Keys
from xmatch.search.packed import PackedFiles
from xmatch.search.scores import Float32, Int64, Rows

Hashes = npt.NDArray[np.uint64]

BLOCK_BYTES = 1 << 21
"""Rows that are hashed or compared at a time."""
LEAST_SAVED = 0.05
"""Part of a bank's rows that must be copies before it is copied without them."""
MOST_COPIES = 256
"""Copies of one row beyond which they are taken out however few they are: they all tie, and a backend that meets more
ties than it has room for scores every key."""
EXPANDED_ROWS = 1 << 22
"""Rows put back at a time."""


class Duplicates(NamedTuple):
    """Which rows are equal.

    Attributes:
        representatives: (M,) lowest row of each kind, ascending.
        members: (N,) rows, kind by kind, ascending within each.
        starts: (M + 1,) where each kind begins in `members`; its first member represents it.
    """

    representatives: Int64
    members: Int64
    starts: Int64

    @property
    def sizes(self) -> Int64:
        """(M,) rows of each kind."""
        return np.diff(self.starts)

    @property
    def copies(self) -> int:
        """Rows that equal a lower one."""
        return len(self.members) - len(self.representatives)

    @property
    def are_worth_merging(self) -> bool:
        """Whether a scan gains by leaving copies out."""
        return bool(self.copies) and (
            self.copies >= LEAST_SAVED * len(self.members) or int(self.sizes.max()) > MOST_COPIES
        )


def find_duplicates(rows: Rows) -> Duplicates:
    """Which rows of a matrix are equal.

    Rows are read in order once, for a hash of 64 bits each; rows of equal hash are then compared, value by value.
    Takes some 50 bytes of memory a row, and a block of rows.

    Args:
        rows: (N, D) float32, float16 or bfloat16; may be memory-mapped.
    """
    hashes = row_hashes(rows)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = ordered[1:] != ordered[:-1]
    del ordered, hashes
    followers = np.flatnonzero(~is_new)
    different = followers[~_are_equal(rows, order[followers - 1], order[followers])]
    if len(different):  # two rows of one hash: such runs are sorted by what they hold
        starts = np.flatnonzero(is_new)
        for run in np.unique(np.searchsorted(starts, different, "right") - 1):
            stop = starts[run + 1] if run + 1 < len(starts) else len(order)
            _sort_by_content(rows, order[starts[run] : stop], is_new[starts[run] : stop])
    starts = np.flatnonzero(is_new)
    by_lowest = np.argsort(order[starts])
    sizes = np.diff(np.append(starts, len(order)))[by_lowest]
    ends = np.cumsum(sizes)
    moved = np.repeat(starts[by_lowest] - (ends - sizes), sizes) + np.arange(len(order))
    return Duplicates(order[starts][by_lowest], order[moved], np.concatenate([[0], ends]))


def row_hashes(rows: Rows) -> Hashes:
    """A 64-bit hash of each row (N,); equal rows have equal hashes.

    It is the sum of the row's 8-byte words times odd random numbers: multilinear hashing (Thorup, *High Speed Hashing
    for Integers and Strings*, 2015).
    """
    found = np.empty(len(rows), np.uint64)
    words = -(-rows.shape[1] * rows.dtype.itemsize // 8)
    factors = np.random.default_rng(0).integers(0, 1 << 63, words, np.uint64) * np.uint64(2) + np.uint64(1)
    for start, stop in _blocks(len(rows), rows):
        block = _bits(rows[start:stop])
        if rows.shape[1] * rows.dtype.itemsize % 8:
            wide = np.zeros((len(block), words * 8 // rows.dtype.itemsize), block.dtype)
            wide[:, : rows.shape[1]] = block
            block = wide
        np.einsum("nw,w->n", block.view(np.uint64), factors, out=found[start:stop])
    return found


class Scan(Protocol):
    """What finds the best keys: a backend of the searcher."""

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query, for 1 <= k <= N and at least one query."""
        ...


class MergedScan:
    """A scan over distinct keys that answers as one over all keys does, bit for bit.

    Args:
        scan: over the distinct keys, in the order of `duplicates.representatives`.
        duplicates: of all keys.
    """

    def __init__(self, scan: Scan, duplicates: Duplicates) -> None:
        self._scan, self._duplicates = scan, duplicates

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query, among all keys."""
        found = self._scan.top(queries, min(k, len(self._duplicates.representatives)))
        return expand(found, self._duplicates, k)


def merged_scan(
    keys: Keys, build: Callable[[Keys, PackedFiles | None], Scan], packed: PackedFiles | None = None
) -> Scan:
    """A scan over keys that holds equal ones once, where that is worth a copy of the others.

    Args:
        keys: all keys.
        build: makes the scan of the keys it is given, and keeps its packed form where it is told; it gets `keys` and
            `packed` themselves where nothing is merged.
        packed: where packed forms of `keys` are kept, if anywhere.
    """
    duplicates = find_duplicates(keys.rows)
    if not duplicates.are_worth_merging:
        return build(keys, packed)
    kept = duplicates.representatives
    distinct = Keys(keys.rows[kept], keys.norms[kept])
    return MergedScan(build(distinct, packed.variant("distinct") if packed else None), duplicates)


def expand(found: Found, duplicates: Duplicates, k: int) -> Found:
    """The best rows of all from the best distinct rows.

    Args:
        found: for each query the min(k, M) best distinct rows, numbered as the representatives are.
        duplicates: which rows they stand for.
        k: results per query, at most N.

    Returns:
        Scores and rows (Q, k), by score, equal ones by the lowest row; the counts as they were.
    """
    sizes = np.minimum(duplicates.sizes, k)[found.rows]
    scores, rows = np.empty((len(found.rows), k), np.float32), np.empty((len(found.rows), k), np.int64)
    is_single = (sizes == 1).all(1) & (sizes.shape[1] == k)
    others = np.flatnonzero(~is_single)
    if is_single.any():
        scores[is_single], rows[is_single] = found.scores[is_single], duplicates.representatives[found.rows[is_single]]
    ends, start = np.cumsum(sizes[others].sum(1)), 0
    while start < len(others):
        room = EXPANDED_ROWS + (ends[start - 1] if start else 0)
        stop = max(start + 1, int(np.searchsorted(ends, room, "right")))
        part = others[start:stop]
        scores[part], rows[part] = _expanded(found.scores[part], found.rows[part], sizes[part], duplicates, k)
        start = stop
    return Found(scores, rows, found.counts)


def _expanded(scores: Float32, kinds: Int64, sizes: Int64, duplicates: Duplicates, k: int) -> tuple[Float32, Int64]:
    flat = sizes.reshape(-1)
    within = np.arange(int(flat.sum())) - np.repeat(np.cumsum(flat) - flat, flat)
    rows = duplicates.members[np.repeat(duplicates.starts[kinds.reshape(-1)], flat) + within]
    scores = np.repeat(scores.reshape(-1), flat)
    queries = np.repeat(np.arange(len(sizes)), sizes.sum(1))
    order = np.lexsort((rows, -scores, queries))
    chosen = order[np.searchsorted(queries, np.arange(len(sizes)))[:, None] + np.arange(k)]
    return scores[chosen], rows[chosen]


def _bits(rows: Rows) -> npt.NDArray[np.unsignedinteger]:
    """The bits of rows (R, D), as unsigned numbers of their size, those of -0 as those of 0; a copy."""
    kind = np.dtype(f"u{rows.dtype.itemsize}")
    bits: npt.NDArray[np.unsignedinteger] = np.array(rows, order="C").view(kind)
    bits[bits == 1 << (8 * kind.itemsize - 1)] = 0
    return bits


def _blocks(count: int, rows: Rows) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(1, rows.shape[1] * rows.dtype.itemsize))
    for start in range(0, count, step):
        yield start, min(count, start + step)


def _are_equal(rows: Rows, left: Int64, right: Int64) -> npt.NDArray[np.bool_]:
    """Whether rows `left` and `right` are equal, pair by pair; all of shape (P,)."""
    found = np.empty(len(left), np.bool_)
    for start, stop in _blocks(len(left), rows):
        found[start:stop] = (_bits(rows[left[start:stop]]) == _bits(rows[right[start:stop]])).all(1)
    return found


def _sort_by_content(rows: Rows, order: Int64, is_new: npt.NDArray[np.bool_]) -> None:
    """Bring equal rows of one run, of shape (R,), together, in place: kinds by their lowest row, rows ascending."""
    kinds: dict[bytes, list[int]] = {}
    for row in order.tolist():
        kinds.setdefault(_bits(rows[row : row + 1]).tobytes(), []).append(row)
    order[:] = [row for members in kinds.values() for row in members]
    is_new[:] = False
    is_new[np.cumsum([0, *(len(members) for members in kinds.values())][:-1])] = True
