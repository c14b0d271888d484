"""Texts of entities to be embedded: prompts, or captions with one entity masked; cut into shards by entity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from alignment.entities.entity_tables import entity_rows, read_entity_file, table_files
from alignment.entities.prompts import (
    legacy_masked_caption,
    masked_caption,
    masked_id,
    prompt_id,
    prompt_of,
)
from xmatch.data import files
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

TEXT_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("group", pa.string())])
"""One row a text; the group is its caption's id."""
Kind = Literal["prompts", "masked_texts"]


@dataclass(frozen=True, kw_only=True)
class EntitySource:
    """Where entities are, and how texts are made of them."""

    path: str = ""
    """The output of extract_entities, or a file or folder of entities."""
    slots: int = 10
    """Entities of a caption that are embedded, the first ones (10 in AGREE's re-ranking)."""
    mask: str = ""
    """What stands for a masked entity; empty: the mask token of the model's tokenizer, else "[MASK]"."""
    legacy: bool = False
    """Entities in lower case, masked as the original masks: exact occurrences alone, in this very case, within words
    too. A capitalised entity is then not found, and its caption is embedded as it was."""

    def __post_init__(self) -> None:
        """Refuse what would embed nothing."""
        if self.slots < 1:
            raise InputError(f"slots must be at least 1, got {self.slots}.")


class EntityCounts(NamedTuple):
    """How many captions have entities, and how many of these are embedded."""

    captions: int
    without: int
    entities: int
    beyond: int

    def __str__(self) -> str:
        """As a plan prints it."""
        text = f"{self.entities:,} of {self.captions:,} captions, {self.without:,} of them without any"
        return f"{text}; {self.beyond:,} more are beyond the slots" if self.beyond else text


def entity_counts(source: EntitySource) -> EntityCounts:
    """Counts of a table of entities, from the lengths of its lists."""
    captions = without = entities = beyond = 0
    for path in table_files(source.path, "entities"):
        for count in pc.list_value_length(files.read_parquet(path).column("entities")).to_pylist():
            captions, without = captions + 1, without + (not count)
            entities, beyond = entities + min(count, source.slots), beyond + max(0, count - source.slots)
    return EntityCounts(captions, without, entities, beyond)


def plan_entity_shards(source: EntitySource, rows_per_shard: int) -> list[Shard]:
    """Shards of whole captions; `start` and `stop` count rows of a file of entities.

    Captions without entities have no texts; a stretch of nothing else makes no shard.

    Raises:
        InputError: there are no entities, or a file is broken.
    """
    shards: list[Shard] = []
    for path in table_files(source.path, "entities"):
        counts = pc.list_value_length(read_entity_file(path).column("entities")).to_pylist()
        start = texts = 0
        for row, count in enumerate([min(count, source.slots) for count in counts]):
            texts += count
            if texts >= rows_per_shard or (row + 1 == len(counts) and texts):
                shards.append(Shard(shard_name(len(shards)), path, start, row + 1))
                start, texts = row + 1, 0
    if not shards:
        raise InputError(
            f"{source.path!r} holds no entities: none of its captions has one, so nothing is to be embedded."
        )
    return shards


class EntityReader:
    """Reads a shard of entities as texts of TEXT_SCHEMA, ids and order as in their table.

    Args:
        source: of the entities.
        kind: what is made of each.
        mask: what stands for a masked entity.
    """

    def __init__(self, source: EntitySource, kind: Kind, mask: str) -> None:
        self.source, self.kind, self.mask = source, kind, mask

    def __call__(self, shard: Shard) -> pa.Table:
        """All texts of a shard.

        Raises:
            InputError: the file is broken; names file and row.
        """
        table = read_entity_file(shard.source).slice(shard.start, shard.stop - shard.start)
        rows: list[tuple[str, str, str]] = []
        for row in entity_rows(table):
            for number, entity in enumerate(row.entities[: self.source.slots]):
                text = entity.text.lower() if self.source.legacy else entity.text
                if self.kind == "prompts":
                    rows.append((prompt_id(row.caption_id, number), prompt_of(text), row.caption_id))
                    continue
                masked = (
                    legacy_masked_caption(row.caption, text, self.mask)
                    if self.source.legacy
                    else masked_caption(row.caption, entity, self.mask)
                )
                rows.append((masked_id(row.caption_id, number), masked, row.caption_id))
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, TEXT_SCHEMA, strict=True)]
        return pa.table(arrays, schema=TEXT_SCHEMA)
