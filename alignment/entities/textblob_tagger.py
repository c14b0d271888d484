"""TextBlob's tagger and chunker, whose lexicon is in the package: nothing is downloaded.

It knows each word's commonest tag alone; caption_tags.py mends what captions do not mean.
"""

from __future__ import annotations

from importlib.metadata import version

from alignment.entities.caption_tags import mended_tags
from alignment.entities.lemmas import noun_lemma, verb_lemma
from alignment.entities.tagged import Parsed, Token, noun_phrases, word_spans
from xmatch.errors import InputError


class TextBlobTagger:
    """English captions through TextBlob's lexicon and chunker.

    Raises:
        InputError: TextBlob is not installed.
    """

    def __init__(self) -> None:
        try:
            from textblob.en import lexicon, parser
            from textblob.en.inflect import singularize
        except ImportError as error:
            raise InputError("entities need TextBlob or spaCy with a model: install vokenray[entities].") from error
        self.identity = f"textblob {version('textblob')}"
        self._lexicon, self._parser, self._singular = lexicon, parser, singularize
        self._lemmas: dict[tuple[str, bool], str] = {}

    def __call__(self, caption: str) -> Parsed:
        """The words and basic noun phrases of a caption."""
        spans = word_spans(caption)
        if not spans:
            return Parsed((), ())
        words = [caption[start:end] for start, end in spans]
        lower = [word.lower() for word in words]
        tags = mended_tags(lower, self._tags(words))
        tokens = tuple(
            Token(word, start, end, tag, self._lemma(low, tag))
            for word, low, (start, end), tag in zip(words, lower, spans, tags, strict=True)
        )
        return Parsed(tokens, noun_phrases(lower, tags, self._runs(words, tags)))

    def _tags(self, words: list[str]) -> list[str]:
        """Of the lexicon, each word in the spelling in which that has it."""
        known = [self._known(word, at == 0) for at, word in enumerate(words)]
        found = self._parser.parse([known], tokenize=False, chunks=False, collapse=False)[0]
        return [tag if any(c.isalnum() for c in word) else _mark(tag) for word, (_, tag) in zip(words, found)]

    def _known(self, word: str, is_first: bool) -> str:
        """A word as the lexicon has it: in lower case, or its last part, such as "shirt" of "t-shirt"."""
        low = word.lower()
        for spelling in (low if is_first else word, low, word, low.rsplit("-", 1)[-1]):
            if spelling in self._lexicon:
                return spelling
        return word

    def _runs(self, words: list[str], tags: list[str]) -> list[tuple[int, int]]:
        """Runs of words that the chunker takes for a noun phrase."""
        chunked = self._parser.find_chunks([[word, tag] for word, tag in zip(words, tags)])
        runs: list[tuple[int, int]] = []
        for at, (_, _, chunk, _) in enumerate(chunked):
            if chunk == "I-NP" and runs and runs[-1][1] == at:
                runs[-1] = runs[-1][0], at + 1
            elif chunk.endswith("NP"):
                runs.append((at, at + 1))
        return runs

    def _lemma(self, word: str, tag: str) -> str:
        is_verb = tag.startswith("VB")
        if not is_verb and tag not in ("NNS", "NNPS"):
            return word
        key = word, is_verb
        if key not in self._lemmas:
            self._lemmas[key] = verb_lemma(word, self._lexicon) if is_verb else noun_lemma(word, self._singular)
        return self._lemmas[key]


def _mark(tag: str) -> str:
    """The tag of what has no letter: never that of a word."""
    return "SYM" if tag[:1].isalpha() else tag
