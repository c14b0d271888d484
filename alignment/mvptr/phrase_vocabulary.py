"""The vocabulary of phrases: which are general enough, and which row of the embedding table each has.

A noun that is one word of the tokenizer has that word's row, so that word and concept are one; all other phrases have
rows behind the words. The published `id2phrase.json` has this form: {"id": [texts]}, its texts one to three.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.mvptr.phrases import Phrase
from xmatch.data import files
from xmatch.errors import InputError

MIN_SENTENCES = 50
"""Sentences in which a phrase of the published vocabulary is at least."""
FILE = "id2phrase.json"


class PhraseVocabulary:
    """Phrases and their ids.

    Args:
        phrases: by id; no phrase twice.

    Raises:
        ValueError: a phrase has two ids.
    """

    def __init__(self, phrases: Mapping[int, Phrase]) -> None:
        self.phrases = dict(phrases)
        self.id_of = {phrase: number for number, phrase in self.phrases.items()}
        if len(self.id_of) < len(self.phrases):
            raise ValueError("a phrase has two ids")

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def rows(self) -> int:
        """Rows that an embedding table needs for all of them: the largest id and one."""
        return max(self.phrases, default=-1) + 1

    def ids(self, phrases: Iterable[Sequence[str]]) -> list[int]:
        """Ids of phrases, in their order; those that are not in the vocabulary are left out."""
        return [self.id_of[tuple(one)] for one in phrases if tuple(one) in self.id_of]

    def require_rows(self, rows: int, where: str) -> None:
        """Check that all ids are rows of a table.

        Args:
            rows: of the embedding table (vocab_size of the model).
            where: file the vocabulary was read from.

        Raises:
            InputError: an id is beyond them; names file and row.
        """
        for row, number in enumerate(self.phrases):
            if number >= rows:
                raise InputError(
                    f"{where!r}, row {row}: phrase {' '.join(self.phrases[number])!r} has id {number}, but the model "
                    f"has {rows} rows of embeddings; give the vocabulary it was trained with, or a larger vocab_size."
                )

    def write(self, path: str) -> None:
        """Write the JSON form, ids ascending."""
        ordered = {str(number): list(self.phrases[number]) for number in sorted(self.phrases)}
        files.write_bytes(path, (json.dumps(ordered, ensure_ascii=False) + "\n").encode())


def build_vocabulary(
    sentences: Mapping[Phrase, int], tokenizer: PreTrainedTokenizerBase, min_sentences: int = MIN_SENTENCES
) -> PhraseVocabulary:
    """The phrases that are in enough sentences, the commonest first where ids are free.

    Args:
        sentences: in how many each phrase is.
        tokenizer: a single noun that is one of its words has that word's id; other ids begin at its size.
        min_sentences: in which a phrase must be.
    """
    words: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    kept = sorted(
        (phrase for phrase, count in sentences.items() if count >= min_sentences), key=lambda p: (-sentences[p], p)
    )
    phrases: dict[int, Phrase] = {}
    free = len(tokenizer)
    for phrase in kept:
        word = words.get(phrase[0]) if len(phrase) == 1 and phrase[0] not in special else None
        phrases[free if word is None else word] = phrase
        free += word is None
    return PhraseVocabulary(phrases)


def read_vocabulary(path: str, *, words: int | None = None, rows: int | None = None) -> PhraseVocabulary:
    """An `id2phrase` JSON, the published one too.

    Args:
        path: of the file.
        words: size of the tokenizer, whose ids belong to single words alone; none: not checked.
        rows: of the model's embeddings, beyond which no id may lie; none: not checked.

    Raises:
        InputError: it has another form, an id or a phrase twice, or an id out of range; names file and row, from 0.
    """
    phrases: dict[int, Phrase] = {}
    first_row: dict[Phrase, int] = {}
    for row, (key, value) in enumerate(_pairs(path)):
        number, phrase = _entry(key, value, f"{path!r}, row {row}")
        if number in phrases:
            raise InputError(f"{path!r}, row {row}: id {number} was there before; every id has one phrase.")
        if phrase in first_row:
            raise InputError(
                f"{path!r}, row {row}: phrase {list(phrase)} has id {number}, and another one in row "
                f"{first_row[phrase]}; every phrase has one id."
            )
        if words is not None and number < words and len(phrase) > 1:
            raise InputError(
                f"{path!r}, row {row}: id {number} is below the tokenizer's {words} words, which only single words may "
                f"share, but its phrase is {list(phrase)}. Is it a vocabulary for another tokenizer?"
            )
        phrases[number], first_row[phrase] = phrase, row
    vocabulary = PhraseVocabulary(phrases)
    if rows is not None:
        vocabulary.require_rows(rows, path)
    return vocabulary


def _pairs(path: str) -> list[tuple[str, Any]]:
    """The entries of a JSON object in order, those with one name too, which json would make one of."""
    found: list[list[tuple[str, Any]]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(pairs)
        return dict(pairs)

    content = files.read_json(path)  # says where it is broken
    if not isinstance(content, dict) or not content:
        raise InputError(
            f'{path!r} is no vocabulary of phrases: expected a JSON object such as {{"30522": ["a", "b"]}}.'
        )
    json.loads(files.read_text(path), object_pairs_hook=keep)
    return found[-1]


def _entry(key: str, value: Any, where: str) -> tuple[int, Phrase]:
    if not (key.isascii() and key.isdecimal()):
        raise InputError(f"{where}: id {key!r} is no whole number from 0.")
    is_phrase = isinstance(value, list) and 1 <= len(value) <= 3 and all(isinstance(t, str) and t for t in value)
    if not is_phrase:
        raise InputError(f"{where}: {value!r:.60} is no phrase; expected a list of one to three texts.")
    return int(key), tuple(value)
