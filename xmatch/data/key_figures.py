"""What can be said of a key bank by reading it through once."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data.key_banks import KeyBank, check_finite
from xmatch.data.vectors import Rows

Lengths = npt.NDArray[np.float64]

SAMPLED_SHARDS, SAMPLED_ROWS = 16, 256
UNIT_WITHIN = 0.01
"""How far the length of a unit vector may be from 1: more than bfloat16 rounds it away, which is 2^-9 at most."""


class NormFigures(NamedTuple):
    """Lengths of rows: the least, mean and greatest of those that are not zero, and how many are zero."""

    least: float
    mean: float
    greatest: float
    zeros: int

    @property
    def are_unit(self) -> bool:
        """Whether all rows but zeros have length 1."""
        return 1 - UNIT_WITHIN <= self.least and self.greatest <= 1 + UNIT_WITHIN


def norm_figures(bank: KeyBank) -> NormFigures:
    """The lengths of all rows of a bank, which is read through once.

    Raises:
        InputError: a row is not finite; names its number and id.
    """
    parts, start = [np.empty(0)], 0
    for block in bank.blocks():
        check_finite(block, bank, start)
        parts.append(_lengths(block))
        start += len(block)
    return _figures(np.concatenate(parts))


def sampled_norms(bank: KeyBank) -> NormFigures:
    """The lengths of the first SAMPLED_ROWS rows of at most SAMPLED_SHARDS shards, evenly spaced."""
    chosen = bank.shards[:: -(-len(bank.shards) // SAMPLED_SHARDS)]
    firsts = (block for shard in chosen for block in islice(shard.blocks(), 1))
    return _figures(np.concatenate([np.empty(0), *(_lengths(block[:SAMPLED_ROWS]) for block in firsts)]))


def _lengths(rows: Rows) -> Lengths:
    wide = rows.astype(np.float64)
    lengths: Lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return lengths


def _figures(lengths: Lengths) -> NormFigures:
    there = lengths[lengths > 0]
    if not len(there):
        return NormFigures(1.0, 1.0, 1.0, len(lengths))
    return NormFigures(float(there.min()), float(there.mean()), float(there.max()), len(lengths) - len(there))
