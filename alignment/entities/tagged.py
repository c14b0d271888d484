"""Captions cut into tagged words with character offsets, and the basic noun phrases among them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, Protocol

WORDS = re.compile(
    r"[^\W_]+(?=n['’]t(?!\w))"  # "do" of "don't"
    r"|n['’]t(?!\w)"
    r"|['’](?:s|re|ve|ll|d|m)(?!\w)"
    r"|[^\W_]+(?:-[^\W_]+)*"
    r"|\S",
    re.IGNORECASE,
)
"""English words, with the endings of contractions apart; every other visible character is a token of its own."""

NOUNS = ("NN", "NNS", "NNP", "NNPS")
ADJECTIVES = ("JJ", "JJR", "JJS")
DETERMINERS = ("DT", "PDT", "PRP$", "CD")
STARTERS = (*DETERMINERS, *ADJECTIVES, "PRP", "WP", "WDT", "EX", "RB")
"""Tags of what, after a noun, begins another phrase."""
JOINERS = ("and", "or", "&", ",")


class Token(NamedTuple):
    """A word of a caption.

    Attributes:
        text: caption[start:end].
        start: its first character.
        end: the character past its last.
        tag: part of speech, in the tags of the Penn Treebank.
        lemma: the word's basic form, in lower case.
    """

    text: str
    start: int
    end: int
    tag: str
    lemma: str


class Parsed(NamedTuple):
    """A caption's words and its basic noun phrases.

    Attributes:
        tokens: in order; their spans do not overlap.
        phrases: (first, past-the-last) token of each basic noun phrase, in order; each holds a noun.
    """

    tokens: tuple[Token, ...]
    phrases: tuple[tuple[int, int], ...]


class Tagger(Protocol):
    """Cuts captions into tagged words and basic noun phrases."""

    identity: str
    """Name and version, which decide what is found."""

    def __call__(self, caption: str) -> Parsed:
        """The words and basic noun phrases of a caption."""
        ...


def word_spans(caption: str) -> list[tuple[int, int]]:
    """Spans of the words and marks of a caption; a combining mark stays with the letter before it."""
    spans: list[tuple[int, int]] = []
    for match in WORDS.finditer(caption):
        start, end = match.span()
        if spans and spans[-1][1] == start and _belongs(caption[start - 1], caption[start]):
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return spans


def _belongs(before: str, character: str) -> bool:
    """Whether a character cannot be parted from the one before it: one of them is a mark, the other of a word."""
    is_mark = unicodedata.category(character).startswith("M")
    return is_mark or (unicodedata.category(before).startswith("M") and character.isalnum())


def noun_phrases(
    words: Sequence[str], tags: Sequence[str], runs: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Basic noun phrases of the runs of words that a chunker took for them.

    A run is cut where something that begins a phrase follows a noun: a determiner, a number, a pronoun, an adjective,
    an adverb, a comma, "and". Adjectives joined before it are taken in: "a black and" before "white dog". A piece
    without a noun is no phrase.

    Args:
        words: of the caption, in lower case.
        tags: of each.
        runs: (first, past-the-last) word of each run, in order.
    """
    found: list[tuple[int, int]] = []
    for first, last in runs:
        start, has_noun = first, False
        for at in range(first, last + 1):
            if has_noun and (at == last or tags[at] in STARTERS or words[at] in JOINERS):
                found.append((_with_joined(words, tags, start, found[-1][1] if found else 0), at))
                start, has_noun = at, False
            if at < last and at == start and (words[at] in JOINERS or tags[at] in ("PRP", "RB", "WP", "WDT", "EX")):
                start += 1
            has_noun = has_noun or (at < last and tags[at] in NOUNS)
    return tuple(found)


def _with_joined(words: Sequence[str], tags: Sequence[str], start: int, earliest: int) -> int:
    """Where a phrase begins, adjectives taken in that "and" or commas join to its first word, an adjective too."""
    if tags[start] not in ADJECTIVES:
        return start
    before = start
    while before - 1 >= earliest and words[before - 1] in JOINERS:
        before -= 1
    if before == start or before - 1 < earliest or tags[before - 1] not in ADJECTIVES:
        return start
    start = before - 1
    while start - 1 >= earliest and tags[start - 1] in (*ADJECTIVES, "RB"):
        start -= 1
    if start - 1 >= earliest and words[start - 1] in JOINERS:
        return _with_joined(words, tags, start, earliest)
    while start - 1 >= earliest and tags[start - 1] in DETERMINERS:
        start -= 1
    return start
