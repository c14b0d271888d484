"""How many captions the losses find something for, before a run starts."""

from __future__ import annotations

import pyarrow.compute as pc

from alignment.agree.choices import CaptionedImages, GroundedChoices, ObjectChoices
from alignment.agree.losses import TEXTUAL, VISUAL, AgreeLossConfig
from alignment.agree.recipe import AgreeData
from alignment.agree.slots import ChosenEntities, EntityConfig, choose_entities
from alignment.entities.entity_tables import read_boxes, read_entities
from alignment.entities.grounding import SOURCE as GROUNDING
from alignment.entities.visual_genome import SOURCE as VISUAL_GENOME
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError


def entities_of(
    train: CaptionSet, data: AgreeData, entity: EntityConfig, losses: AgreeLossConfig
) -> ChosenEntities | None:
    """The entities that take part; None where none are given.

    Raises:
        InputError: there are none, but a loss in use needs them; or they are of other captions.
    """
    if not data.entities:
        return None
    table = read_entities(data.entities)
    chosen = choose_entities(train.caption_ids, train.captions, table, entity, data.entities)
    if not chosen.counts.used and losses.needs(*TEXTUAL, "grounded_mask"):
        raise InputError(
            f"none of the {chosen.counts.captions:,} captions has an entity of at most {entity.max_words} words "
            f"in {data.entities!r}; make the entities again, or use the losses that need none."
        )
    return chosen


def survey(train: CaptionSet, data: AgreeData, entity: EntityConfig, losses: AgreeLossConfig) -> list[tuple[str, str]]:
    """How many captions have entities, and how many the losses on painted images find something for."""
    chosen = entities_of(train, data, entity, losses)
    rows = chosen.counts.rows() if chosen else []
    if not losses.needs(*VISUAL, "grounded_mask") or not data.boxes:
        return rows
    own = CaptionedImages.of(train, chosen.spans if chosen else None)
    return [*rows, *box_rows(own, data, losses, may_be_none=entity.fallback == "square")]


def box_rows(
    own: CaptionedImages, data: AgreeData, losses: AgreeLossConfig, *, may_be_none: bool = False
) -> list[tuple[str, str]]:
    """Captions with a grounded entity, captions with an object that another image shows, and what cannot be used.

    Args:
        own: the captions that are trained on.
        data: where the boxes lie.
        losses: which are in use.
        may_be_none: something stands in for a caption without.

    Raises:
        InputError: a loss in use finds nothing for any caption.
    """
    boxes = read_boxes(data.boxes)
    sources = {row["values"]: row["counts"] for row in pc.value_counts(boxes.column("source")).to_pylist()}
    rows = [("boxes", ", ".join(f"{count:,} of {name}" for name, count in sorted(sources.items())) or "none")]
    total = len(own.captions)
    if losses.needs("grounded_mask"):
        grounded = GroundedChoices(own, boxes)
        count = sum(bool(grounded.candidates(row)) for row in range(total))
        if not count and not may_be_none:
            there = grounded.index.image_ids[0] if grounded.index.image_ids else "none"
            raise InputError(
                f"no entity of the {total:,} captions has a {GROUNDING} box in its image: ids of images are like "
                f"{own.image_ids[0]!r} here and like {there!r} in {data.boxes!r}. Ground the entities of these "
                "captions, or leave grounded_mask out of losses.use."
            )
        rows.append(("captions with a grounded entity", f"{count:,} of {total:,}"))
        known = set(own.image_ids)
        strangers = [name for name in grounded.index.image_ids if name not in known]
        if strangers:
            rows.append(
                (f"images of {GROUNDING} boxes not trained on", f"{len(strangers):,}; such as {strangers[0]!r}")
            )
    if losses.needs(*VISUAL):
        objects = ObjectChoices(own, boxes, data.object_photos)
        count = sum(bool(objects.candidates(row)) for row in range(total))
        if not count and not may_be_none:
            raise InputError(
                f"no object of the {total:,} captions and their images is shown by another image, whose objects in "
                f"{data.boxes!r} are like {objects.others.phrases[0]!r}. Take boxes of objects that the captions "
                "name, or leave visual and visual_mask out of losses.use."
            )
        rows.append(("captions with an object that another image shows", f"{count:,} of {total:,}"))
        if objects.missing:
            first = ", ".join(repr(name) for name in objects.first_missing)
            rows.append((f"images of {VISUAL_GENOME} without a photo", f"{objects.missing:,}; the first: {first}"))
    return rows
