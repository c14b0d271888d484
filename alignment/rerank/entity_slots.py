"""The vectors of captions' entities: prompts, and captions with an entity masked, by caption and number.

Shapes: M captions, S slots, D width.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.rerank.candidates import EMPTY, Int64, named
from xmatch.data.vectors import Rows, matrix, read_vectors
from xmatch.errors import InputError

ID_PATTERN = r"(?s)^(?P<caption>.*)#{kind}(?P<number>[0-9]{{1,9}})$"
"""Ids of rows: `{caption_id}#p0003` is the fourth prompt of a caption, `{caption_id}#m0003` the fourth masking."""
KINDS = {"p": "prompts", "m": "masked captions"}


class VectorRows:
    """Vectors that lie in several arrays, such as files that are memory-mapped, gathered without copying them all.

    Args:
        parts: (N_i, D) each, at least one.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def width(self) -> int:
        """D."""
        return int(self.parts[0].shape[1])

    def take(self, rows: Int64) -> Rows:
        """Vectors (K, D) of rows (K,) counted over all parts."""
        if len(self.parts) == 1 or not len(rows):
            return self.parts[0][rows]
        first, last = (bisect_right(self._starts, int(row)) - 1 for row in (rows.min(), rows.max()))
        if first == last:  # as nearly always: the entities of one caption lie together
            together: Rows = self.parts[first][rows - self._starts[first]]
            return together
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), self.width), self.parts[0].dtype)
        for part in np.unique(part_of).tolist():
            is_here = part_of == part
            found[is_here] = self.parts[part][rows[is_here] - self._starts[part]]
        return found

    @classmethod
    def of_table(cls, table: pa.Table) -> VectorRows:
        """The vectors of a table, as they lie in its files."""
        batches = [batch for batch in table.to_batches() if len(batch)]
        return cls([matrix(pa.Table.from_batches([batch])) for batch in batches] or [matrix(table)])


class EntitySlots(NamedTuple):
    """Vectors of the entities of M captions.

    Attributes:
        prompts: vectors of prompts.
        masks: vectors of captions with one entity masked.
        prompt_rows: (M, S) int64 rows of `prompts` of each caption's first S entities, in their order; EMPTY beyond.
        mask_rows: (M, S) rows of `masks`, EMPTY at the same places.
        beyond: entities left out because their captions have more than S.
        elsewhere: rows of captions that are not asked for.
    """

    prompts: VectorRows
    masks: VectorRows
    prompt_rows: Int64
    mask_rows: Int64
    beyond: int = 0
    elsewhere: int = 0

    @property
    def counts(self) -> Int64:
        """(M,) entities of each caption."""
        found: Int64 = (self.prompt_rows != EMPTY).sum(1)
        return found


def read_slots(prompts: str, masks: str, caption_ids: Sequence[str], slots: int) -> EntitySlots:
    """The entities of captions from two tables of vectors.

    Args:
        prompts: table with ids `{caption_id}#p{number}` and the caption as group.
        masks: table with ids `{caption_id}#m{number}`, of the same captions and numbers.
        caption_ids: M ids; a caption without rows has no entities.
        slots: entities of a caption that are used.

    Raises:
        InputError: a table is broken, an id has another form, the two do not hold the same entities, or none is of
            these captions.
    """
    tables = (read_vectors(prompts), read_vectors(masks))
    found = [_numbered(*three, caption_ids) for three in zip(tables, "pm", (prompts, masks))]
    own = [Numbered(*(column[one.places >= 0] for column in one)) for one in found]
    _require_same(own[0], own[1], caption_ids, (prompts, masks))
    if len(found[0].rows) and not len(own[0].rows):
        raise InputError(
            f"{prompts!r} holds no entity of the {len(caption_ids):,} captions of the split; its rows are such as "
            f"{tables[0].column('id')[0].as_py()!r}, the split's captions such as {next(iter(caption_ids), 'none')!r}."
        )
    rows = np.full((2, len(caption_ids), slots), EMPTY, np.int64)
    for side, one in zip(rows, own):
        is_used = one.numbers < slots
        side[one.places[is_used], one.numbers[is_used]] = one.rows[is_used]
    _require_no_gaps(rows[0], caption_ids, prompts)
    vectors = [VectorRows.of_table(table) for table in tables]
    beyond = int((own[0].numbers >= slots).sum())
    return EntitySlots(vectors[0], vectors[1], rows[0], rows[1], beyond, len(found[0].rows) - len(own[0].rows))


class Numbered(NamedTuple):
    """Rows (R,) of a table, the caption of each by its place in the split, -1 where it has none, and its number."""

    places: Int64
    numbers: Int64
    rows: Int64


def _numbered(table: pa.Table, kind: str, where: str, caption_ids: Sequence[str]) -> Numbered:
    ids = table.column("id").combine_chunks()
    parts = pc.extract_regex(ids, ID_PATTERN.format(kind=kind))
    captions, is_known = pc.struct_field(parts, "caption"), parts.is_valid()
    if "group" in table.column_names:
        groups = table.column("group").combine_chunks()
        is_known = pc.and_(is_known, pc.fill_null(pc.equal(groups, captions), True))
    wrong = pc.index(is_known, False).as_py()
    if wrong >= 0:
        group = table.column("group")[wrong].as_py() if "group" in table.column_names else None
        raise InputError(
            f"{where!r}, row {wrong}: the id {ids[wrong].as_py()!r} of group {group!r} is none of {KINDS[kind]}; "
            f"expected the caption's id, #{kind} and a number, and the caption's id as group. Make it with "
            "jobs/embed.py."
        )
    places = pc.fill_null(pc.index_in(captions, value_set=pa.array(caption_ids, pa.string())), -1)
    numbers = pc.struct_field(parts, "number").cast(pa.int64())
    return Numbered(places.to_numpy().astype(np.int64), numbers.to_numpy(), np.arange(len(ids)))


def _require_same(prompts: Numbered, masks: Numbered, caption_ids: Sequence[str], places: tuple[str, str]) -> None:
    """Check that two tables hold the same entities of the split, each once."""
    keys: list[Int64] = [one.places << 32 | one.numbers for one in (prompts, masks)]
    for key, where in zip(keys, places):
        unique, counts = np.unique(key, return_counts=True)
        if len(unique) < len(key):
            caption, number = _named(int(unique[counts > 1][0]), caption_ids)
            raise InputError(f"{where!r}: entity {number} of caption {caption!r} comes twice; expected it once.")
    differing = np.setxor1d(keys[0], keys[1])
    if len(differing):
        caption, number = _named(int(differing[0]), caption_ids)
        holds, lacks = places if differing[0] in keys[0] else places[::-1]
        raise InputError(
            f"{holds!r} holds entity {number} of caption {caption!r} and {lacks!r} does not ({len(differing):,} "
            "entities are in one of the two alone). Embed prompts and masked captions of one entities table."
        )


def _named(key: int, caption_ids: Sequence[str]) -> tuple[str, int]:
    return caption_ids[key >> 32], key & (1 << 32) - 1


def _require_no_gaps(rows: Int64, caption_ids: Sequence[str], where: str) -> None:
    is_there = rows != EMPTY
    gaps = np.flatnonzero((is_there[:, 1:] & ~is_there[:, :-1]).any(1)).tolist()
    if len(gaps):
        raise InputError(
            f"{where!r}: the entities of {named([caption_ids[row] for row in gaps], 'captions')} are not numbered from "
            "0 without gaps. Embed all entities of a caption."
        )


def with_bare_text(slots: EntitySlots, bare_text: Rows) -> EntitySlots:
    """Slots in which the empty text stands where there is no entity, as the original pads them.

    Args:
        slots: of M captions.
        bare_text: (1, D) vector of the empty text.
    """
    return slots._replace(
        prompts=VectorRows([*slots.prompts.parts, bare_text.astype(slots.prompts.parts[0].dtype)]),
        masks=VectorRows([*slots.masks.parts, bare_text.astype(slots.masks.parts[0].dtype)]),
        prompt_rows=np.where(slots.prompt_rows == EMPTY, len(slots.prompts), slots.prompt_rows),
        mask_rows=np.where(slots.mask_rows == EMPTY, len(slots.masks), slots.mask_rows),
    )


def read_bare_text(path: str) -> Rows:
    """The vector of the empty text, (1, D).

    Raises:
        InputError: the table holds more than one vector.
    """
    rows = matrix(read_vectors(path))
    if len(rows) != 1:
        raise InputError(f"{path!r} holds {len(rows):,} vectors; expected one, that of the empty text.")
    return rows
