"""Scene-graph tuples as SPICE writes them in JSON, made entities of the captions where these say them.

SPICE's tuples hold basic forms ("men" is "man") and no places. An object or attribute is found where a word of the
caption has that text or basic form; what is not found is counted and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from alignment.entities.entity_tables import Entity, string_ids
from alignment.entities.tagged import Parsed, Tagger, Token
from xmatch.data import files
from xmatch.errors import InputError

SHOWN = 5
"""Entities not found that are named; all of them are counted."""


class ImportedEntities(NamedTuple):
    """Entities of one caption from its tuples.

    Attributes:
        entities: spans of the caption.
        not_found: texts that the caption does not say.
    """

    entities: tuple[Entity, ...]
    not_found: tuple[str, ...]


def read_spice(path: str) -> dict[str, list[tuple[str, ...]]]:
    """Tuples by caption id of a JSON file: SPICE's own, or a list of objects with `phrases`.

    SPICE's detailed form is a list of objects with `image_id` (the caption's id there) and `test_tuples`, a list of
    objects with `tuple`. The other has `caption_id`, or else `image_id`, and `phrases`, a list of lists of texts.

    Raises:
        InputError: the file has another form, ids of mixed types, or an id twice; names the row.
    """
    content = files.read_json(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{path!r} is no file of tuples: expected a JSON list of objects with test_tuples or phrases.")
    ids = string_ids([row.get("caption_id", row.get("image_id")) for row in content], path, "id")
    found: dict[str, list[tuple[str, ...]]] = {}
    for row, (caption_id, entry) in enumerate(zip(ids, content, strict=True)):
        if caption_id in found:
            raise InputError(f"{path!r}, row {row}: caption {caption_id!r} was there before; ids must be unique.")
        found[caption_id] = [_tuple(one, path, row) for one in _tuples(entry, path, row)]
    return found


def _tuples(entry: dict[str, Any], path: str, row: int) -> list[Any]:
    tuples = entry.get("test_tuples", entry.get("phrases"))
    if not isinstance(tuples, list):
        raise InputError(f"{path!r}, row {row}: expected a list test_tuples or phrases, got {tuples!r:.60}.")
    return [one.get("tuple") if isinstance(one, dict) else one for one in tuples]


def _tuple(one: Any, path: str, row: int) -> tuple[str, ...]:
    is_whole = isinstance(one, list) and 1 <= len(one) <= 3 and all(isinstance(text, str) and text for text in one)
    if not is_whole:
        raise InputError(f"{path!r}, row {row}: {one!r:.60} is no tuple; expected a list of one to three texts.")
    return tuple(one)


def entities_of_tuples(caption: str, tuples: Sequence[tuple[str, ...]], tagger: Tagger) -> ImportedEntities:
    """The entities that tuples name, where the caption has them.

    Objects become the noun with the attributes of its tuples that stand right before it: ("umbrella", "flowered")
    gives "flowered umbrella". Relations name their two objects.

    Args:
        caption: the caption.
        tuples: of it.
        tagger: gives the words' basic forms.

    Returns:
        Entities in the order of the caption, and the texts that it does not say.
    """
    parsed = tagger(caption)
    attributes: dict[str, set[str]] = {}
    for one in tuples:
        for name in {one[0], one[-1]} if len(one) == 3 else {one[0]}:
            attributes.setdefault(name, set()).update(one[1:] if len(one) == 2 else ())
    found: dict[str, Entity] = {}
    missing = []
    for name in attributes:
        spans = _spans(caption, parsed, name)
        if not spans:
            missing.append(name)
        for first, last in spans:
            while first > 0 and _is_one_of(parsed.tokens[first - 1], attributes[name]):
                first -= 1
            start, end = parsed.tokens[first].start, parsed.tokens[last].end
            found.setdefault(caption[start:end].lower(), Entity(caption[start:end], start, end))
    return ImportedEntities(tuple(sorted(found.values(), key=lambda e: (e.start, e.end))), tuple(missing))


def _spans(caption: str, parsed: Parsed, name: str) -> list[tuple[int, int]]:
    """(first, last) words that say a name of one or several words, in their own or in basic forms."""
    words = name.lower().split()
    tokens = parsed.tokens
    return [
        (at, at + len(words) - 1)
        for at in range(len(tokens) - len(words) + 1)
        if all(_is_one_of(token, {word}) for token, word in zip(tokens[at : at + len(words)], words))
    ]


def _is_one_of(token: Token, words: set[str]) -> bool:
    return token.text.lower() in words or token.lemma in words
