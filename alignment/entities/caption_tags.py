"""Tags of captions mended: a lexicon knows each word's commonest tag alone, which captions often do not mean.

Every rule is about a word and its neighbours, in the tags of the Penn Treebank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignment.entities.tagged import ADJECTIVES, NOUNS

SUBORDINATORS = frozenset("that while whilst as if because than though although since whether so until when".split())
"""Words that begin a clause, though tagged as prepositions."""
OF_ONE = frozenset("a an one this each every another".split())
OF_MANY = frozenset("several some many few these those all both various multiple numerous".split())
POINTERS = frozenset("this that these those all both each some".split())
"""Determiners that may stand for a noun, and have a verb after them."""
DETERMINERS = ("DT", "PRP$", "CD", "PRP")

Words = Sequence[str]
Rule = Callable[[Words, Sequence[str], int], str | None]


def mended_tags(words: Words, tags: Sequence[str]) -> list[str]:
    """Tags of a caption, mended by each rule in turn, word by word.

    Args:
        words: in lower case.
        tags: of each, as a lexicon has them.
    """
    mended = list(tags)
    for rule in RULES:
        for at in range(len(mended)):
            mended[at] = rule(words, mended, at) or mended[at]
    return mended


def _clause(words: Words, tags: Sequence[str], at: int) -> str | None:
    """A word that begins a clause is no noun: "whilst"."""
    return "IN" if words[at] in SUBORDINATORS and tags[at] in NOUNS else None


def _noun(words: Words, tags: Sequence[str], at: int) -> str | None:
    """A verb right after "the", "a" or "her", a noun: "the curb", "a brown bear"; and one before "is" or "has"."""
    if tags[at] not in ("VB", "VBP", "VBZ"):
        return None
    before = _tag(tags, at - 1)
    if tags[at] == "VB" and before in (*NOUNS, *ADJECTIVES) and words[at + 1 : at + 2] in (["is"], ["has"], ["was"]):
        return "NN"
    first = at - 1
    while _tag(tags, first) in ADJECTIVES:
        first -= 1
    if _tag(tags, first) not in ("DT", "PRP$") or words[first] in POINTERS:
        return None
    return "NNS" if tags[at] == "VBZ" else "NN"


def _participle(words: Words, tags: Sequence[str], at: int) -> str | None:
    """Between a determiner or adjective and a noun or adjective, an adjective: "a smiling girl"."""
    if tags[at] not in ("VBG", "VBN", "VBD") or _tag(tags, at + 1) not in (*NOUNS, *ADJECTIVES):
        return None
    return "JJ" if _tag(tags, at - 1) in ("DT", "PRP$", *ADJECTIVES) else None


def _gerund(words: Words, tags: Sequence[str], at: int) -> str | None:
    """A noun in "-ing" before a determiner, a verb: "petting a yak". So a noun between "to" and one: "to show her"."""
    if tags[at] != "NN" or _tag(tags, at + 1) not in DETERMINERS:
        return None
    if _tag(tags, at - 1) == "TO":
        return "VB"
    return "VBG" if words[at].endswith("ing") and _tag(tags, at - 1) not in ("DT", "PRP$", *ADJECTIVES) else None


def _third_person(words: Words, tags: Sequence[str], at: int) -> str | None:
    """A plural after the noun of "a", or before a determiner, a verb: "a dog jumps", "man rides a bike"."""
    if tags[at] != "NNS" or _tag(tags, at - 1) not in ("NN", "NNP") or _tag(tags, at + 1) in NOUNS:
        return None
    if _tag(tags, at + 1) in ("DT", "PRP$", "PRP"):
        return "VBZ"
    determiner = _determiner(words, tags, at)
    return "VBZ" if determiner >= 0 and words[determiner] in OF_ONE else None


def _plural_subject(words: Words, tags: Sequence[str], at: int) -> str | None:
    """A noun after the plural of "two" or "some", or after the first word, a verb: "two boys peer", "women race"."""
    if tags[at] != "NN" or _tag(tags, at - 1) != "NNS" or _tag(tags, at + 1) in NOUNS:
        return None
    determiner = _determiner(words, tags, at)
    is_many = determiner >= 0 and (words[determiner] in OF_MANY or tags[determiner] == "CD")
    return "VBP" if at == 1 or (is_many and words[determiner] not in OF_ONE) else None


def _nominal(words: Words, tags: Sequence[str], at: int) -> str | None:
    """An adjective without its noun, a noun: "the top of", "a red hooded top is"."""
    if words[at + 1 : at + 2] == ["of"] and (
        tags[at] in ADJECTIVES or (tags[at] == "RB" and _tag(tags, at - 1) == "DT")
    ):
        return "NN"
    if tags[at] not in ADJECTIVES:
        return None
    if _tag(tags, at + 1) not in ("IN", ".") and not _tag(tags, at + 1).startswith("VB"):
        return None
    first = at
    while _tag(tags, first - 1) in ADJECTIVES:
        first -= 1
    return "NN" if _tag(tags, first - 1) in ("DT", "PRP$") else None


RULES: tuple[Rule, ...] = (_clause, _noun, _participle, _gerund, _third_person, _plural_subject, _nominal)


def _tag(tags: Sequence[str], at: int) -> str:
    """The tag of a word; a full stop beyond the caption's ends."""
    return tags[at] if 0 <= at < len(tags) else "."


def _determiner(words: Words, tags: Sequence[str], at: int) -> int:
    """Place of the word before the nouns and adjectives that end before `at`; -1 where the caption begins with them."""
    first = at
    while _tag(tags, first - 1) in (*NOUNS, *ADJECTIVES, "VBG", "POS") and words[first - 1] not in OF_MANY:
        first -= 1
    return first - 1
