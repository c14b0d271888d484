"""Size augmentation of words, regions and grid cells (VSE-infinity, section 4.2), as pure functions of a generator.

Nothing is dropped at evaluation, and at least one member of a set always stays. Rates: golden
`augmentation_stats.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SizeAugmentConfig:
    """How much is dropped from sets and captions in training; 0 leaves all."""

    regions: float = 0.0
    """Share of regions dropped, each by its own draw; 0.2 as published."""
    cells: float = 0.0
    """Grid cells: each image draws r from 0 … 1, and for r above this number drops each cell with probability
    `cells` x r; 0.2 as published, 9.6 % on average."""
    words: float = 0.0
    """Share of words chosen (0.2 as published): of these half are masked, a tenth replaced, the others deleted."""
    special_tokens: bool = False
    """Let the chosen words include the begin and end tokens, as the published BiGRU models do."""


def keep_regions(count: int, share: float, draw: np.random.Generator) -> Mask:
    """Which of `count` regions stay, (count,) bool: each is dropped with probability `share`."""
    return _never_empty(draw.random(count) >= share, draw)


def keep_cells(count: int, share: float, draw: np.random.Generator) -> Mask:
    """Which of `count` grid cells stay, (count,) bool: as `SizeAugmentConfig.cells` says."""
    rate = draw.random()
    if rate <= share:
        return np.ones(count, np.bool_)
    return _never_empty(draw.random(count) >= share * rate, draw)


def _never_empty(kept: Mask, draw: np.random.Generator) -> Mask:
    if len(kept) and not kept.any():
        kept[draw.integers(len(kept))] = True
    return kept


def augment_words(
    ids: Sequence[int],
    words: Sequence[int | None],
    share: float,
    draw: np.random.Generator,
    *,
    mask_id: int,
    vocab_size: int,
    special_tokens: bool = False,
) -> list[int]:
    """Mask, replace or delete whole words of one caption.

    Args:
        ids: token ids, special tokens included.
        words: the word each token belongs to; None for special tokens.
        share: of words chosen; of these 50 % become `mask_id`, 10 % random ids, 40 % vanish.
        draw: the caption's own generator.
        mask_id: the id that hides a token.
        vocab_size: random ids are drawn below it.
        special_tokens: treat special tokens as words of their own.

    Returns:
        The new ids, at least one.
    """
    fates: dict[int, float] = {}
    kept: list[int] = []
    for place, (token, word) in enumerate(zip(ids, words, strict=True)):
        if word is None and not special_tokens:
            kept.append(token)
            continue
        key = -1 - place if word is None else word
        fate = fates.setdefault(key, float(draw.random()))
        if fate >= share:
            kept.append(token)
        elif fate < 0.5 * share:
            kept.append(mask_id)
        elif fate < 0.6 * share:
            kept.append(int(draw.integers(vocab_size)))
    return kept or [ids[int(draw.integers(len(ids)))]]
