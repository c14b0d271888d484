"""spaCy's tagger and noun chunks, where one of its English models is installed; none is ever downloaded."""

from __future__ import annotations

from typing import Any

from alignment.entities.tagged import NOUNS, Parsed, Token
from xmatch.errors import InputError


def installed_models() -> list[str]:
    """Names of the installed English models that can be asked for noun chunks, best known first."""
    try:
        from spacy.util import get_installed_models
    except ImportError:
        return []
    order = {f"en_core_web_{size}": at for at, size in enumerate(("sm", "md", "lg", "trf"))}
    found = [name for name in get_installed_models() if name.startswith("en_")]
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


class SpacyTagger:
    """English captions through a spaCy pipeline.

    Args:
        model: name of an installed model, or a folder with one.

    Raises:
        InputError: spaCy or the model is not installed, or the model has no tagger or no parser.
    """

    def __init__(self, model: str) -> None:
        try:
            import spacy
        except ImportError as error:
            raise InputError(f"the tagger {model!r} needs spaCy: install vokenray[sentences].") from error
        try:
            self._pipeline: Any = spacy.load(model, exclude=["ner"])
        except OSError as error:
            raise InputError(
                f"spaCy has no model {model!r}; installed are {', '.join(installed_models()) or 'none'}. Install "
                "it with spaCy's own command, or give textblob."
            ) from error
        lacking = [need for need in ("tagger", "parser") if need not in self._pipeline.pipe_names]
        if lacking:
            raise InputError(f"spaCy's model {model!r} has no {lacking[0]}; noun chunks need both tagger and parser.")
        meta = self._pipeline.meta
        self.identity = f"spacy {spacy.__version__} {meta['lang']}_{meta['name']} {meta['version']}"

    def __call__(self, caption: str) -> Parsed:
        """The words and basic noun phrases of a caption."""
        return parsed_doc(self._pipeline(caption))


def parsed_doc(doc: Any) -> Parsed:
    """What a tagged and parsed document of spaCy says, blank tokens left out."""
    kept = [token for token in doc if not token.is_space]
    place = {token.i: at for at, token in enumerate(kept)}
    tokens = tuple(
        Token(token.text, token.idx, token.idx + len(token.text), token.tag_, (token.lemma_ or token.text).lower())
        for token in kept
    )
    phrases = []
    for chunk in doc.noun_chunks:
        inside = [place[token.i] for token in chunk if token.i in place]
        if any(tokens[at].tag in NOUNS for at in inside):
            phrases.append((inside[0], inside[-1] + 1))
    return Parsed(tokens, tuple(phrases))
