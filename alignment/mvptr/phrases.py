"""Phrases of sentences, MVPTR's concepts of text: scene-graph tuples in basic forms, parsed by rule or from SPICE.

A phrase is (object), (object, attribute) or (subject, relation, object). The rules are those of
`alignment.entities.scene_graphs` but for one: the direct objects of participles that a conjunction joins are in no
relation, as in what SPICE's parser gave MVPTR ("holding an umbrella and petting a yak").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from alignment.entities.scene_graphs import scene_tuples
from alignment.entities.tagged import Tagger

Phrase = tuple[str, ...]
"""One to three texts in lower case."""


def phrases_of(text: str, tagger: Tagger) -> list[Phrase]:
    """The phrases of a sentence by rule, each once, in alphabetical order.

    Args:
        text: the sentence; its case is not looked at.
        tagger: gives words, basic forms and noun phrases.
    """
    return scene_tuples(tagger(text.lower()), with_joined_participles=False)


class Agreement(NamedTuple):
    """How far two lists of phrases are the same; nothing of nothing counts as all.

    parsed, imported: different phrases of each. shared: of both.
    """

    parsed: int
    imported: int
    shared: int

    @property
    def precision(self) -> float:
        """Share of the parsed ones that were imported too."""
        return self.shared / self.parsed if self.parsed else 1.0

    @property
    def recall(self) -> float:
        """Share of the imported ones that were parsed too."""
        return self.shared / self.imported if self.imported else 1.0

    @property
    def jaccard(self) -> float:
        """Share of the phrases of either that both have."""
        either = self.parsed + self.imported - self.shared
        return self.shared / either if either else 1.0


def agreement(parsed: Iterable[Sequence[str]], imported: Iterable[Sequence[str]]) -> Agreement:
    """The agreement of two lists of phrases of one sentence; repeats count once."""
    ours, theirs = {tuple(one) for one in parsed}, {tuple(one) for one in imported}
    return Agreement(len(ours), len(theirs), len(ours & theirs))


def overall(found: Sequence[Agreement]) -> dict[str, float]:
    """Figures over sentences: of all phrases together, and the means of the sentences' own (`by_sentence`)."""
    total = Agreement(*(sum(column) for column in zip(*found, strict=True))) if found else Agreement(0, 0, 0)
    measures = ("precision", "recall", "jaccard")
    means = {f"{name}_by_sentence": sum(getattr(one, name) for one in found) / max(1, len(found)) for name in measures}
    return {**{name: getattr(total, name) for name in measures}, **means}
