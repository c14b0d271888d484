"""What to look for in each image: the entities of its captions, as phrases by which boxes are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from alignment.entities.entity_tables import CaptionEntities, Entity
from xmatch.errors import InputError

PHRASE_SCHEMA = pa.schema(
    [("id", pa.string()), ("uri", pa.string()), ("bytes", pa.binary()), ("phrases", pa.list_(pa.string()))]
)
"""What the step reads: a row an image, with the phrases to look for in lower case; null bytes: it is read from uri."""


def phrase_listing(rows: Iterable[CaptionEntities], uris: Mapping[str, str]) -> pa.Table:
    """What to look for in each image: the entities of its captions, in lower case, each once; PHRASE_SCHEMA.

    Args:
        rows: captions with their entities.
        uris: place of each image by id.

    Raises:
        InputError: an image is not among them.
    """
    phrases: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.image_id not in uris:
            raise InputError(f"image {row.image_id!r} of caption {row.caption_id!r} is not among the images.")
        phrases.setdefault(row.image_id, {}).update(dict.fromkeys(phrase_of(entity) for entity in row.entities))
    looked = {image_id: list(own) for image_id, own in phrases.items() if own}
    columns = [list(looked), [uris[one] for one in looked], [None] * len(looked), list(looked.values())]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PHRASE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=PHRASE_SCHEMA)


def phrase_of(entity: Entity) -> str:
    """The phrase by which boxes know an entity: its text in lower case, with single spaces."""
    return " ".join(entity.text.lower().split())
