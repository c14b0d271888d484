"""Masking of words, tags and phrases for pre-training; a function of (seed, epoch, sample), never in place.

Words, those of an answer too, and tags: a share of the tokens is to be predicted; of these most become [MASK], some a
random word, and the rest stay. Phrases are never predicted: one that a predicted word is part of becomes [MASK], so
that it does not give the word away, and a share of the others is disturbed in the same three ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.mvptr.objectives import IGNORED
from alignment.mvptr.pair_inputs import PairText
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

MASKING = 11
"""Sets the numbers of this module apart from other draws by (seed, epoch, sample)."""
LEAST_STEM = 3
"""Letters that two forms of one word share at least."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """The published shares."""

    words: float = 0.15
    """Share of the text's tokens that are predicted."""
    tags: float = 0.15
    """Share of the tags' tokens that are predicted."""
    phrases: float = 0.15
    """Share of the other phrases that are disturbed."""
    masked: float = 0.8
    """Of what was chosen, the share that becomes [MASK]."""
    random: float = 0.1
    """Of what was chosen, the share that becomes another; the rest stays."""

    def __post_init__(self) -> None:
        """Shares are shares."""
        if not all(0 <= one <= 1 for one in (self.words, self.tags, self.phrases, self.masked, self.random)):
            raise InputError("masking: shares are from 0 to 1.")
        if self.masked + self.random > 1:
            raise InputError(f"masking: masked and random are at most 1 together, got {self.masked} + {self.random}.")


class Vocabularies(NamedTuple):
    """Where random tokens come from: id of [MASK], number of words, the phrases' ids (K,) int64."""

    mask: int
    words: int
    phrases: npt.NDArray[np.int64]


class Masked(NamedTuple):
    """Ids to read and words to predict (−1: none), of text, tags and, if any, answer; and the phrases to read."""

    tokens: list[int]
    token_labels: list[int]
    phrases: list[int]
    tags: list[int]
    tag_labels: list[int]
    answer: list[int] | None = None
    answer_labels: list[int] | None = None


def draw_of(key: SampleKey, sample: int) -> np.random.Generator:
    """The generator of one sample's masking."""
    return np.random.default_rng((key.seed, key.epoch, int(sample), MASKING))


def mask_pair(
    text: PairText,
    tags: Sequence[int],
    links: Sequence[Sequence[int]],
    known: Vocabularies,
    config: MaskingConfig,
    draw: np.random.Generator,
) -> Masked:
    """Mask one pair.

    Args:
        text: its text side.
        tags: tokens of its tags, as many as the model reads.
        links: for each phrase the words that it was made of.
        known: where random tokens come from.
        config: shares.
        draw: of this sample.
    """
    tokens, labels = _masked_words(text.tokens, config.words, known, config, draw)
    predicted = {word for word, label in zip(text.words, labels, strict=True) if label != IGNORED}
    phrases = _disturbed(text.phrases, config.phrases, known.phrases, known.mask, config, draw)
    for place, words in enumerate(links[: len(phrases)]):
        if predicted.intersection(words):
            phrases[place] = known.mask
    tag_tokens, tag_labels = _masked_words(tags, config.tags, known, config, draw)
    found = Masked(tokens, labels, phrases, tag_tokens, tag_labels)
    if text.answer is None:
        return found
    answer, answer_labels = _masked_words(text.answer, config.words, known, config, draw)
    return found._replace(answer=answer, answer_labels=answer_labels)


def _masked_words(
    tokens: Sequence[int], share: float, known: Vocabularies, config: MaskingConfig, draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    chosen, ways = draw.random(len(tokens)) < share, draw.random(len(tokens))
    others = draw.integers(0, known.words, len(tokens))
    read, labels = list(tokens), [IGNORED] * len(tokens)
    for place in np.flatnonzero(chosen).tolist():
        labels[place] = tokens[place]
        read[place] = _replaced(tokens[place], ways[place], known.mask, int(others[place]), config)
    return read, labels


def _disturbed(
    phrases: Sequence[int],
    share: float,
    ids: npt.NDArray[np.int64],
    mask: int,
    config: MaskingConfig,
    draw: np.random.Generator,
) -> list[int]:
    """Phrases as they are read, a share of them masked or replaced by others of `ids`, of shape (K,)."""
    chosen, ways = draw.random(len(phrases)) < share, draw.random(len(phrases))
    others = ids[draw.integers(0, len(ids), len(phrases))] if len(ids) else np.full(len(phrases), mask, np.int64)
    read = list(phrases)
    for place in np.flatnonzero(chosen).tolist():
        read[place] = _replaced(phrases[place], ways[place], mask, int(others[place]), config)
    return read


def _replaced(own: int, way: float, mask: int, other: int, config: MaskingConfig) -> int:
    if way < config.masked:
        return mask
    return other if way < config.masked + config.random else own


def linked_words(phrase: Sequence[str], words: Sequence[str]) -> list[int]:
    """The words of a sentence that a phrase is made of.

    Phrases have basic forms, so two words count as one if all but the last letter of the shorter begins the other:
    "ride" and "riding", "dog" and "dogs". A word too many only hides a phrase more.

    Args:
        phrase: one to three texts.
        words: of the sentence, in lower case.
    """
    parts = {part for text in phrase for part in text.split()}
    return [place for place, word in enumerate(words) if any(_is_same(part, word) for part in parts)]


def _is_same(one: str, other: str) -> bool:
    least = max(LEAST_STEM, min(len(one), len(other)) - 1)
    return one == other or one[:least] == other[:least] and min(len(one), len(other)) >= least
