"""Taggers by name."""

from __future__ import annotations

from alignment.entities.spacy_tagger import SpacyTagger, installed_models
from alignment.entities.tagged import Tagger
from alignment.entities.textblob_tagger import TextBlobTagger
from xmatch.errors import InputError

TEXTBLOB = "textblob"


def chosen_tagger(name: str) -> str:
    """What "auto" means here: an installed spaCy model, else TextBlob; every other name is itself."""
    return next(iter(installed_models()), TEXTBLOB) if name == "auto" else name


def load_tagger(name: str) -> Tagger:
    """A tagger: `textblob`, or a spaCy model by name or folder.

    Raises:
        InputError: what it needs is not installed.
    """
    return TextBlobTagger() if name == TEXTBLOB else SpacyTagger(name)


def load_same_tagger(name: str, identity: str) -> Tagger:
    """The tagger of that name, which must be the one that a run was begun with.

    Args:
        name: as for `load_tagger`.
        identity: of the run's tagger; "": any.

    Raises:
        InputError: this machine has another, or none.
    """
    loaded = load_tagger(name)
    if identity not in ("", loaded.identity):
        raise InputError(f"a worker has the tagger {loaded.identity!r}, the run {identity!r}; install one.")
    return loaded
