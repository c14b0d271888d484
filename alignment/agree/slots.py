"""Which entities of a caption take part in a training run, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xmatch.errors import InputError

EXAMPLES = 3
"""Captions that do not fit described in words; all of them are counted."""


@dataclass(frozen=True, kw_only=True)
class EntityConfig:
    """Which entities take part, and how; the numbers are the published ones."""

    slots: int = 5
    """Entities of a caption that take part, the first of its row in the table."""
    max_words: int = 7
    """Longest entity in words; a longer one is left out."""
    mask_word: str = ""
    """What stands for a masked entity; empty: the tokenizer's own mask token, or "[MASK]" where it has none."""
    fallback: Literal["none", "square"] = "none"
    """Where a sample has no other image with an object, or no box of an entity: `none` leaves the pair out. `square`:
    the image itself, with a random square of mean colour over it, as the original means to."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        if self.slots < 1 or self.max_words < 1:
            raise InputError(f"entity needs slots and max_words of at least 1; got {self.slots}, {self.max_words}.")


@dataclass(frozen=True)
class EntityCounts:
    """What became of the entities of a split.

    Attributes:
        captions: of the split.
        entities: of these captions in the table.
        used: that take part.
        too_long: left out, for they have more words than allowed.
        beyond_slots: left out, for the slots before them are full.
        without: captions that no entity is left of.
        missing: captions without a row in the table.
        differing: captions whose row holds another text; they count as without entities.
        first_differing: the first of these in words.
        first_missing: ids of the first of those.
    """

    captions: int
    entities: int
    used: int
    too_long: int
    beyond_slots: int
    without: int
    missing: int
    differing: int
    first_differing: tuple[str, ...]
    first_missing: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The counts for a person."""
        mean = self.used / max(1, self.captions)
        rows = [
            ("entities", f"{self.used:,} in {self.captions:,} captions, {mean:.2f} a caption"),
            ("captions without", f"{self.without:,}"),
        ]
        if self.too_long or self.beyond_slots:
            left_out = f"{self.too_long:,} of more words than allowed, {self.beyond_slots:,} beyond the slots"
            rows.append(("entities left out", left_out))
        if self.missing:
            rows.append(("captions without a row", f"{self.missing:,}; the first: {', '.join(self.first_missing)}"))
        if self.differing:
            rows.append(("captions of another text", f"{self.differing:,}; {'; '.join(self.first_differing)}"))
        return rows


class ChosenEntities(NamedTuple):
    """spans: (M, P, 2) int32, first and past-the-last character of each entity of each caption, -1 where none is."""

    spans: npt.NDArray[np.int32]
    counts: EntityCounts


def choose_entities(
    caption_ids: Sequence[str], captions: Sequence[str], table: pa.Table, config: EntityConfig, where: str
) -> ChosenEntities:
    """The first `slots` entities of each caption that are not too long.

    Args:
        caption_ids: M ids.
        captions: their texts.
        table: of ENTITY_SCHEMA, checked; rows of other captions are not looked at.
        config: how many.
        where: the table came from, for messages.

    Raises:
        InputError: no caption has a row, or every caption that has one reads otherwise there.
    """
    row_of = {name: row for row, name in enumerate(table.column("caption_id").to_pylist())}
    texts, entities = table.column("caption"), table.column("entities")
    spans = np.full((len(captions), config.slots, 2), -1, np.int32)
    seen = too_long = beyond = 0
    missing, differing = [], []
    for place, (name, caption) in enumerate(zip(caption_ids, captions, strict=True)):
        row = row_of.get(name)
        if row is None:
            missing.append(repr(name))
            continue
        if (theirs := texts[row].as_py()) != caption:
            differing.append(f"{name!r} is {caption!r:.80} here and {theirs!r:.80} in {where!r}")
            continue
        found = entities[row].as_py()
        fitting = [(e["start"], e["end"]) for e in found if len(e["text"].split()) <= config.max_words]
        kept = fitting[: config.slots]
        spans[place, : len(kept)] = np.array(kept, np.int32).reshape(-1, 2)
        seen, too_long, beyond = (
            seen + len(found),
            too_long + len(found) - len(fitting),
            beyond + len(fitting) - len(kept),
        )
    _refuse_strangers(caption_ids, list(row_of), missing, differing, where)
    used = spans[..., 0] >= 0
    counts = EntityCounts(
        captions=len(captions),
        entities=seen,
        used=int(used.sum()),
        too_long=too_long,
        beyond_slots=beyond,
        without=int((~used.any(1)).sum()),
        missing=len(missing),
        differing=len(differing),
        first_differing=tuple(differing[:EXAMPLES]),
        first_missing=tuple(missing[:EXAMPLES]),
    )
    return ChosenEntities(spans, counts)


def _refuse_strangers(
    here: Sequence[str], there: Sequence[str], missing: Sequence[str], differing: Sequence[str], where: str
) -> None:
    """Refuse a table of other captions."""
    if here and len(missing) == len(here):
        theirs = repr(there[0]) if there else "none"
        raise InputError(
            f"{where!r} has entities of none of the {len(here):,} captions: ids are like {here[0]!r} here and like "
            f"{theirs} there. Make the entities from the captions that are trained on."
        )
    if differing and len(missing) + len(differing) == len(here):
        raise InputError(
            f"{where!r} knows the ids of the captions but other texts: {differing[0]}. Make the entities again from "
            "the captions that are trained on."
        )
