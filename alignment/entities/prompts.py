"""Prompts of entities, and captions with an entity masked (AGREE, WSDM 2023).

Masking goes by offset. What the mask replaces is the entity's own span and every other place where the caption says the
same in whole words, whatever the case: a caption that still names the entity is no caption without it.
"""

from __future__ import annotations

import re

from alignment.entities.entity_tables import Entity

PROMPT = "a photo containing {entity}"
LEGACY_MASK = "[MASK]"
"""What the original puts in, though CLIP's vocabulary has no such token."""


def prompt_of(entity: str) -> str:
    """The prompt of an entity, in the case in which it comes."""
    return PROMPT.format(entity=entity)


def prompt_id(caption_id: str, number: int) -> str:
    """Id of the prompt of a caption's entity `number`, counted from 0 in the order of its table."""
    return f"{caption_id}#p{number:04d}"


def masked_id(caption_id: str, number: int) -> str:
    """Id of the caption with its entity `number` masked."""
    return f"{caption_id}#m{number:04d}"


def mask_word(mask_token: str | None, setting: str = "") -> str:
    """What stands for a masked entity: the setting, else the tokenizer's mask token, else "[MASK]"."""
    return setting or mask_token or LEGACY_MASK


def masked_spans(caption: str, entity: Entity) -> list[tuple[int, int]]:
    """Spans of a caption that a mask of an entity replaces, in order, none touching another's characters.

    The entity's own span is always one of them.
    """
    pattern = re.compile(rf"(?<!\w){re.escape(entity.text)}(?!\w)", re.IGNORECASE)
    spans, position = [(entity.start, entity.end)], 0
    while match := pattern.search(caption, position):
        start, end = match.span()
        if start < entity.end and end > entity.start:
            position = start + 1
        else:
            spans.append((start, end))
            position = end
    return sorted(spans)


def masked_caption(caption: str, entity: Entity, mask: str) -> str:
    """A caption without one of its entities.

    Args:
        caption: the caption.
        entity: one of its spans; caption[start:end] is its text.
        mask: put in for each span of `masked_spans`.

    Raises:
        ValueError: the entity is not in the caption.
    """
    if caption[entity.start : entity.end] != entity.text or not entity.text:
        raise ValueError(f"entity {entity} is not in caption {caption!r}")
    parts, last = [], 0
    for start, end in masked_spans(caption, entity):
        parts += [caption[last:start], mask]
        last = end
    return "".join([*parts, caption[last:]])


def legacy_masked_caption(caption: str, text: str, mask: str = LEGACY_MASK) -> str:
    """A caption masked as the original does it: every occurrence in this very case, within words too.

    An entity in lower case at the start of a capitalised caption is not found, and the caption comes back as it was.
    """
    return caption.replace(text, mask)
