"""One block of queries on its way over the tiles of a bank: every pair that the bound cannot exclude.

Positive floating-point numbers are ordered as the whole numbers that their bits spell, and those are compared several
times faster; so scores are only ever looked at as whole numbers, and lines are kept above zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xmatch.search.scores import Int64

FINE, FEW_SCORES = 8, 1 << 15
"""Keys in a group, and groups in the next larger one; and how many maxima are few enough to be compared one by one."""
LINE_GROUPS, LINE_SHARE = 48, 6
"""Groups whose maxima give the line, at least, and for each result: more make it a little higher and cost time."""
MOST_CANDIDATES = 1 << 13
"""Candidates of one query, beyond four for each result, from which on it is scored against every key."""
ROW_BITS = 40
LOWEST_LINE = 2.0**-80
"""Lines below it, where underflow might matter, are none."""
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class Bank(NamedTuple):
    """Keys, centred, scaled and rounded.

    Attributes:
        rows: (T, K, D) bfloat16: row r of N is `rows[r % T, r // T]`, so every tile is a sample; the rest is zero.
        largest: the largest norm of a row.
        lost: the largest norm of what rounding took from a row.
    """

    rows: torch.Tensor
    largest: float
    lost: float


class Candidates(NamedTuple):
    """Pairs that may be among the best, and of which queries they hold all of the best.

    Attributes:
        queries: (P,) ascending.
        rows: (P,) ascending for each query.
        is_sure: (Q,).
    """

    queries: Int64
    rows: Int64
    is_sure: npt.NDArray[np.bool_]


def scan(bank: Bank, queries: torch.Tensor, room: torch.Tensor, k: int, buffer: torch.Tensor) -> Candidates:
    """Candidates of a block of queries.

    Args:
        bank: N >= k keys in tiles.
        queries: (Q, D) on the device, scaled, in the type of the products: bfloat16 or float32.
        room: (Q,) double precision, on the device: keys whose score is lower than the k-th best by more than this are
            none of the best.
        k: results per query.
        buffer: at least K Q values of the products' type, on the device, to be overwritten.
    """
    first = _pass(bank, queries, room, k, None, buffer)
    pairs, is_sure = (first.queries << ROW_BITS) | first.rows, ~first.is_late & ~first.is_over
    again = first.is_late & (first.lines > LOWEST_LINE).cpu().numpy()
    if again.any():  # the first tile did not tell where their line is; all of them did
        which = np.flatnonzero(again)
        rest = torch.from_numpy(which).to(queries.device)
        second = _pass(bank, queries[rest], room[rest], k, first.lines[rest], buffer)
        pairs = np.concatenate([pairs, (which[second.queries] << ROW_BITS) | second.rows])
        is_sure[which] = ~second.is_over
    pairs.sort()
    if not is_sure.all():
        pairs = pairs[is_sure[pairs >> ROW_BITS]]
    return Candidates(pairs >> ROW_BITS, pairs & ((1 << ROW_BITS) - 1), is_sure)


class _Pass(NamedTuple):
    """Pairs (P,), and of the queries (Q,): their lines, and whether these came late or let too many pairs through."""

    queries: Int64
    rows: Int64
    lines: torch.Tensor
    is_late: npt.NDArray[np.bool_]
    is_over: npt.NDArray[np.bool_]


def _pass(
    bank: Bank, queries: torch.Tensor, room: torch.Tensor, k: int, known: torch.Tensor | None, buffer: torch.Tensor
) -> _Pass:
    """Queries (Q, D) over all tiles; `known` are lines (Q,) that an earlier pass has found."""
    tiles, held, asked = len(bank.rows), bank.rows.shape[1], len(queries)
    dtype, columns = queries.dtype, queries.T
    scores = buffer[: held * asked].view(held, asked)
    highest, most = torch.iinfo(BITS[dtype]).max, MOST_CANDIDATES + 4 * k
    best: torch.Tensor | None = None
    lines = torch.full_like(room, -torch.inf) if known is None else known
    found = []
    for tile in range(tiles):
        torch.mm(bank.rows[tile].to(dtype), columns, out=scores)
        levels = [scores.view(BITS[dtype])]
        while levels[-1].numel() > FEW_SCORES and len(levels[-1]) % FINE == 0:
            levels.append(levels[-1].view(-1, FINE, asked).amax(1))
        best = _best(best, _line_groups(levels, k), k)
        lines = torch.maximum(lines, _at_least(best.amin(0), dtype) - room)
        if tile == 0:
            is_late = is_shut = lines <= LOWEST_LINE
        reach = torch.where(is_shut, highest, _rounded_up_to(lines, dtype))
        places, values = _reaching(levels, reach)
        if len(places) > most:
            is_shut = is_shut | (torch.bincount(places % asked, minlength=asked) > most)
        place = places // asked
        found.append((places - place * asked, place * tiles + tile, values))
    query, row, value = found[0]
    if tiles > 1:  # the first tiles were looked into before the lines had risen
        query, row, value = (torch.cat(part) for part in zip(*found, strict=True))
        keep = _true_places(value >= reach[query])
        query, row = query[keep], row[keep]
    is_over = is_shut & ~is_late
    if len(query) > most:
        is_over = is_over | (torch.bincount(query, minlength=asked) > most)
    return _Pass(query.cpu().numpy(), row.cpu().numpy(), lines, is_late.cpu().numpy(), is_over.cpu().numpy())


def _line_groups(levels: list[torch.Tensor], k: int) -> torch.Tensor:
    """Largest scores of disjoint groups of keys (G, Q), several times k; their k-th best is no better than keys'."""
    enough = max(LINE_GROUPS, LINE_SHARE * k)
    groups = next((level for level in reversed(levels) if len(level) >= enough), levels[0])
    size = 1 << max(0, (len(groups) // enough).bit_length() - 1)
    size = min(size, len(groups) & -len(groups))  # the largest power of two that divides it
    return groups.view(-1, size, groups.shape[1]).amax(1) if size > 1 else groups


def _best(best: torch.Tensor | None, groups: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each column of both, (k, Q) and (G, Q) to (k, Q)."""
    both = groups if best is None else torch.cat([best, groups])
    return both.amax(0, keepdim=True) if k == 1 else both.topk(k, dim=0, sorted=False).values


def _reaching(levels: list[torch.Tensor], reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat places, in the first level (K, Q), of scores that reach their query's line, and these scores."""
    asked = len(reach)
    places = _true_places((levels[-1] >= reach).view(-1))
    steps = torch.arange(FINE, device=reach.device) * asked
    for level in reversed(levels[:-1]):
        query = places % asked
        below = (places * FINE - query * (FINE - 1))[:, None] + steps
        inside = level.view(-1)[below]
        hits = _true_places((inside >= reach[query][:, None]).view(-1))
        places = below.view(-1)[hits]
    return places, levels[0].view(-1)[places]


def _true_places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask of shape (n,) is true; numpy finds few among many five times as fast as torch on a processor."""
    return mask.nonzero().squeeze(1) if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def _at_least(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The least number, in double precision, that is rounded to these positive ones, of any shape; 0 for all others."""
    if dtype == torch.bfloat16:  # half a step down, in bits of float32
        bits = (bits.int() << 16) - (1 << 15)
    return bits.clamp(min=0).view(torch.float32).double()


def _rounded_up_to(lines: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bits, in the shape of `lines`, to which positive numbers from there on are rounded at least."""
    return (lines * (1 - 2.0**-22)).to(torch.float32).to(dtype).view(BITS[dtype])
