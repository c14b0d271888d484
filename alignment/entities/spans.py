"""Textual entities of a caption: its basic noun phrases, and the longer ones that prepositions build of them.

"Four men on top of a tall structure" gives "Four men", "top", "a tall structure", then "Four men on top of a tall
structure" and "top of a tall structure": the entities published for this caption (AGREE).
"""

from __future__ import annotations

from typing import NamedTuple

from alignment.entities.caption_tags import SUBORDINATORS
from alignment.entities.entity_tables import Entity
from alignment.entities.tagged import Parsed

LINKS = ("IN", "TO", "RP", "POS")
CLOSE = frozenset(["of", "'s", "’s", "'", "’"])
"""Links that bind to the phrase just before them; every other belongs to the first phrase of its chain."""
MAX_WORDS = 7
"""Longest entity of AGREE, in words between spaces."""


class Spans(NamedTuple):
    """Entities of a caption, and how many were left out for their length."""

    entities: tuple[Entity, ...]
    too_long: int


def nested_spans(caption: str, parsed: Parsed, max_words: int = MAX_WORDS) -> Spans:
    """The entities of a caption: basic phrases in the order of the text, then longer ones in that order.

    A longer one goes from a phrase over the phrases that prepositions hang on it. It never ends before an "of" or a
    possessive, and begins within a chain of phrases only where it goes on with one of these. Of entities that
    are the same text, whatever the case, the first stays.

    Args:
        caption: the caption.
        parsed: its words and basic phrases.
        max_words: longest entity, in words between spaces.

    Returns:
        Entities with caption[start:end] == text, and how many different ones were too long.
    """
    phrases = parsed.phrases
    spans = [(at, at) for at in range(len(phrases))]
    spans += [span for chain in chains(parsed) for span in _longer(chain)]
    found: dict[str, Entity] = {}
    too_long: set[str] = set()
    for first, last in spans:
        start, end = parsed.tokens[phrases[first][0]].start, parsed.tokens[phrases[last][1] - 1].end
        text = caption[start:end]
        key = " ".join(text.lower().split())
        if len(key.split()) > max_words:
            too_long.add(key)
        elif any(character.isalpha() for character in text):
            found.setdefault(key, Entity(text, start, end))
    return Spans(tuple(found.values()), len(too_long))


def chains(parsed: Parsed) -> list[list[tuple[int, str]]]:
    """Basic phrases that follow each other with prepositions alone between them.

    Returns:
        Chains of at least one phrase: its number, and the words that link it to the one before ("" for the first).
    """
    found: list[list[tuple[int, str]]] = []
    for at, (first, _) in enumerate(parsed.phrases):
        between = parsed.tokens[parsed.phrases[at - 1][1] : first] if at else ()
        if between and all(token.tag in LINKS and token.lemma not in SUBORDINATORS for token in between):
            found[-1].append((at, " ".join(token.text.lower() for token in between)))
        else:
            found.append([(at, "")])
    return found


def is_close(link: str) -> bool:
    """Whether a link binds to the phrase just before it."""
    return link in CLOSE


def _longer(chain: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """(first, last) phrase of every longer entity of a chain."""
    links = [link for _, link in chain]
    spans = []
    for first in range(len(chain)):
        for last in range(first + 1, len(chain)):
            reaches = first == 0 or all(is_close(link) for link in links[first + 1 : last + 1])
            is_whole = last + 1 == len(chain) or not is_close(links[last + 1])
            if reaches and is_whole:
                spans.append((chain[first][0], chain[last][0]))
    return spans
