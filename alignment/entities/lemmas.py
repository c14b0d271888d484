"""Basic forms of English words, by rule and a known vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

PLURAL_ALONE = frozenset("pants shorts clothes jeans sunglasses glasses trousers scissors goggles skis police".split())
"""Nouns that a rule would rob of their only form."""
IRREGULAR = {
    form: verb
    for verb, forms in {
        "be": "am are been being is was were 's 're ’s ’re",
        "bend": "bent",
        "bite": "bit bitten",
        "blow": "blew blown",
        "break": "broke broken",
        "bring": "brought",
        "build": "built",
        "buy": "bought",
        "catch": "caught",
        "come": "came",
        "die": "dying",
        "do": "did does done",
        "draw": "drawn drew",
        "drive": "driven drove",
        "eat": "ate eaten",
        "fall": "fallen fell",
        "feed": "fed",
        "fight": "fought",
        "find": "found",
        "fly": "flew flown",
        "freeze": "froze frozen",
        "get": "got",
        "give": "gave given",
        "go": "goes gone went",
        "grow": "grew grown",
        "hang": "hung",
        "have": "had has 've ’ve",
        "hide": "hid hidden",
        "hold": "held",
        "keep": "kept",
        "lay": "laid",
        "lead": "led",
        "leave": "left",
        "lie": "lying",
        "light": "lit",
        "make": "made",
        "meet": "met",
        "ride": "ridden rode",
        "run": "ran",
        "say": "said",
        "see": "saw seen",
        "sell": "sold",
        "show": "shown",
        "sing": "sang sung",
        "sit": "sat",
        "sleep": "slept",
        "slide": "slid",
        "speak": "spoke spoken",
        "spend": "spent",
        "stand": "stood",
        "stick": "stuck",
        "swim": "swam swum",
        "take": "taken took",
        "teach": "taught",
        "tear": "tore torn",
        "tell": "told",
        "throw": "threw thrown",
        "tie": "tying",
        "wear": "wore worn",
        "win": "won",
        "write": "written wrote",
    }.items()
    for form in forms.split()
}
"""Verbs of captions whose forms no rule gives."""
SUFFIXES = (("ied", ("y",)), ("ies", ("y",)), ("ing", ("e", "")), ("ed", ("e", "")), ("s", ("",)), ("es", ("",)))
"""Endings of verbs, and what stands in their place in the basic form, the likelier first."""


def verb_lemma(word: str, vocabulary: Mapping[str, str]) -> str:
    """The basic form of a verb; the word itself where no rule leads to a known one.

    Args:
        word: in lower case.
        vocabulary: the commonest tag of each known word.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    for suffix, endings in SUFFIXES:
        stem = word.removesuffix(suffix)
        if stem == word or len(stem) < 2:
            continue
        forms = [stem + ending for ending in endings]
        if suffix in ("ing", "ed") and stem[-1] == stem[-2]:
            forms.append(stem[:-1])
        verbs = [form for form in forms if vocabulary.get(form) in ("VB", "VBP")]
        known = verbs or [form for form in forms if vocabulary.get(form, "")[:2] in ("NN", "JJ")]
        if known:
            return known[0]
    return word


def noun_lemma(word: str, singular: Callable[[str], str]) -> str:
    """The singular of a plural noun; `singular` is asked where a rule holds."""
    return word if word in PLURAL_ALONE else singular(word).lower()
