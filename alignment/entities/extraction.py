"""Captions to entities, one shard at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from alignment.entities.entity_tables import CaptionEntities, entity_table
from alignment.entities.spans import MAX_WORDS, nested_spans
from alignment.entities.spice import entities_of_tuples
from alignment.entities.tagged import Tagger
from alignment.entities.taggers import load_same_tagger
from xmatch.data.steps import StepOutput, quarantine_table
from xmatch.errors import InputError

CAPTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image_id", pa.string()),
        ("text", pa.string()),
        ("tuples", pa.list_(pa.list_(pa.string()))),
    ]
)
"""What the step reads: a row a caption; null tuples: the tagger finds the entities."""
MAX_CHARACTERS = 20_000
"""Longest caption that is looked at; a longer one is a document."""


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """What counts as a textual entity."""

    tagger: str = "auto"
    """`textblob`, whose lexicon is in its package; or a spaCy model by name or folder. `auto`: spaCy where one of its
    English models is installed, else TextBlob. Nothing is downloaded."""
    max_words: int = MAX_WORDS
    """Longest entity, in words between spaces; longer ones are left out and counted."""
    tuples: str = ""
    """JSON of scene-graph tuples, as SPICE writes it: the entities are what it names, not what the tagger finds."""

    def __post_init__(self) -> None:
        """Refuse what would leave nothing."""
        if self.max_words < 1:
            raise InputError(f"max_words must be at least 1, got {self.max_words}.")


class ExtractEntities:
    """A step: rows of CAPTION_SCHEMA to rows of ENTITY_SCHEMA, a caption without entities too.

    Args:
        tagger: `textblob`, or a spaCy model, never `auto`: every worker must take the same.
        max_words: longest entity.
        identity: of the tagger, which this worker's must have; empty: any.
    """

    def __init__(self, tagger: str, max_words: int = MAX_WORDS, identity: str = "") -> None:
        self.tagger, self.max_words, self.identity = tagger, max_words, identity
        self._loaded: Tagger | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Entities of one shard of captions, in row order; captions that are documents are quarantined."""
        tagger = self._tagger()
        broken: list[tuple[str, str, str]] = []
        found: list[CaptionEntities] = []
        too_long = not_found = 0
        for row in rows.to_pylist():
            if len(row["text"]) > MAX_CHARACTERS:
                reason = f"{len(row['text']):,} characters, more than the {MAX_CHARACTERS:,} of a caption"
                broken.append((row["id"], shard_id, reason))
                continue
            if row["tuples"] is None:
                spans = nested_spans(row["text"], tagger(row["text"]), self.max_words)
                entities, left = spans.entities, spans.too_long
            else:
                named = entities_of_tuples(row["text"], [tuple(one) for one in row["tuples"]], tagger)
                entities = tuple(one for one in named.entities if len(one.text.split()) <= self.max_words)
                left = len(named.entities) - len(entities)
                not_found += len(named.not_found)
                if named.not_found:
                    broken.append((row["id"], shard_id, f"does not say {', '.join(map(repr, named.not_found))}"))
            too_long += left
            found.append(CaptionEntities(row["id"], row["image_id"], row["text"], entities))
        return StepOutput(entity_table(found), _counts(found, too_long, not_found), quarantine_table(broken))

    def _tagger(self) -> Tagger:
        if self._loaded is None:
            self._loaded = load_same_tagger(self.tagger, self.identity)
        return self._loaded


def _counts(found: Sequence[CaptionEntities], too_long: int, not_found: int) -> dict[str, int]:
    entities = [entity for row in found for entity in row.entities]
    return {
        "captions": len(found),
        "captions_without_entities": sum(not row.entities for row in found),
        "entities": len(entities),
        "dropped_by_max_words": too_long,
        "not_in_their_captions": not_found,
    }


def caption_listing(
    caption_ids: Sequence[str],
    image_ids: Sequence[str],
    captions: Sequence[str],
    tuples: Mapping[str, Sequence[tuple[str, ...]]] | None = None,
) -> pa.Table:
    """Captions as a table of CAPTION_SCHEMA.

    Args:
        caption_ids: N ids.
        image_ids: N ids of their images.
        captions: N texts.
        tuples: by caption id; None: the tagger finds entities.

    Raises:
        InputError: an id comes twice, or tuples are of no caption, or captions have none.
    """
    if len(set(caption_ids)) < len(caption_ids):
        seen: set[str] = set()
        twice = next(one for one in caption_ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise InputError(f"caption id {twice!r} comes twice, and entities are kept by it; make the ids unique.")
    if tuples is not None:
        missing = [one for one in caption_ids if one not in tuples]
        if missing:
            raise InputError(
                f"{len(missing):,} of {len(caption_ids):,} captions have no tuples, the first is {missing[0]!r}; the "
                f"ids of the tuples are such as {next(iter(tuples), 'none')!r}. Give tuples of these captions."
            )
    lists = [None if tuples is None else [list(one) for one in tuples[caption_id]] for caption_id in caption_ids]
    columns = [list(caption_ids), list(image_ids), list(captions), lists]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CAPTION_SCHEMA, strict=True)]
    return pa.table(arrays, schema=CAPTION_SCHEMA)
