"""AGREE's features as JSON lines: of images, of captions, and ten of every caption's prompts or masked texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.entities.prompts import masked_id, prompt_id
from alignment.original_files.json_lines import Line, read_lines, unique_ids, write_lines, written_id
from alignment.original_files.predictions import Key
from alignment.rerank.entity_slots import EntitySlots
from xmatch.data.vectors import make_vectors, matrix
from xmatch.errors import InputError

Side = Literal["prompts", "masked_texts"]
ENTITY_IDS = {"prompts": prompt_id, "masked_texts": masked_id}


class EntityFeatures(NamedTuple):
    """Vectors of captions' entities.

    Attributes:
        vectors: table of vectors, one row an entity.
        bare_text: table of one row, the empty text that stood in the first empty slot; None where none was left out.
        left_out: empty slots that were left out.
    """

    vectors: pa.Table
    bare_text: pa.Table | None
    left_out: int


def read_features(path: str, key: Key) -> pa.Table:
    """Features of images (`image_id`) or captions (`query_id`) as a table of vectors, float32.

    Raises:
        InputError: a line is broken, widths differ, a number is not finite, or ids are of mixed types; names file and
            lines.
    """
    ids: list[tuple[int, Any]] = []
    rows: list[npt.NDArray[np.float32]] = []
    for line in read_lines(path):
        ids.append((line.number, line.value(key, (int, str), path)))
        rows.append(_vector(line.value("feature", list, path), line, path, len(rows[0]) if rows else 0))
    return make_vectors(unique_ids(ids, key, path), _stacked(rows, path))


def read_entity_features(path: str, side: Side, counts: Mapping[str, int] | None = None) -> EntityFeatures:
    """Features of captions' entities as a table of vectors, one row a slot, with the ids that jobs/embed.py gives.

    The file does not say which slots are empty. With `counts` those beyond a caption's entities are left out; without,
    the empty text becomes an entity like the others, which is what the original makes of it.

    Args:
        path: of the file; each `feature` holds as many vectors as the others.
        side: whether they are prompts or masked texts.
        counts: entities of each caption, by its id.

    Raises:
        InputError: as for `read_features`; or a caption has no count.
    """
    ids: list[tuple[int, Any]] = []
    blocks: list[npt.NDArray[np.float32]] = []
    for line in read_lines(path):
        ids.append((line.number, line.value("query_id", (int, str), path)))
        slots = line.value("feature", list, path)
        if blocks and len(slots) != len(blocks[0]):
            raise InputError(
                f"{path!r}, line {line.number}: {len(slots)} vectors, those before have {len(blocks[0])}; expected one "
                "number of slots in a file."
            )
        width = blocks[0].shape[1] if blocks else 0
        vectors = [_vector(one, line, path, width) for one in slots]
        blocks.append(_stacked(vectors, f"{path}, line {line.number}"))
    captions = unique_ids(ids, "query_id", path)
    absent = [one for one in captions if counts is not None and one not in counts]
    if absent:
        raise InputError(
            f"{path!r}: {len(absent):,} of {len(captions):,} captions, such as {absent[0]!r}, are not in the entities "
            "table; give the table of these captions."
        )
    return _entity_tables(captions, blocks, side, counts)


def _entity_tables(
    captions: Sequence[str],
    blocks: Sequence[npt.NDArray[np.float32]],
    side: Side,
    counts: Mapping[str, int] | None,
) -> EntityFeatures:
    """What `read_entity_features` gives, from the slots (P, D) of each caption."""
    names, groups, rows, bare, left_out = [], [], [], None, 0
    for caption, block in zip(captions, blocks):
        count = len(block) if counts is None else min(counts[caption], len(block))
        names += [ENTITY_IDS[side](caption, at) for at in range(count)]
        groups += [caption] * count
        rows.append(block[:count])
        left_out += len(block) - count
        if bare is None and count < len(block):
            bare = block[count]
    width = blocks[0].shape[1] if blocks else 0
    vectors = np.concatenate(rows) if rows else np.empty((0, width), np.float32)
    bare_table = None if bare is None else make_vectors(["bare_text"], bare[None])
    return EntityFeatures(make_vectors(names, vectors, groups=groups), bare_table, left_out)


def _vector(values: Any, line: Line, path: str, width: int) -> npt.NDArray[np.float32]:
    """A feature as float32 of shape (D,)."""
    try:
        found = np.array(values, np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path!r}, line {line.number}: a feature is no list of numbers: {error}.") from error
    if found.ndim != 1 or (width and len(found) != width) or not len(found):
        raise InputError(
            f"{path!r}, line {line.number}: a feature has the shape {found.shape}; expected a list of "
            f"{width or 'some'} numbers."
        )
    if not np.isfinite(found).all():
        raise InputError(f"{path!r}, line {line.number}: a feature holds NaN or infinity; expected finite numbers.")
    return found


def _stacked(rows: list[npt.NDArray[np.float32]], where: str) -> npt.NDArray[np.float32]:
    """Vectors (N, D), of which there is one at least."""
    if not rows:
        raise InputError(f"{where!r} holds no features; expected at least one.")
    return np.stack(rows)


def write_features(path: str, table: pa.Table, key: Key) -> int:
    """Write a table of vectors as an original's features; how many lines."""
    return write_lines(path, _feature_lines(table, key))


def _feature_lines(table: pa.Table, key: Key) -> Iterator[dict[str, Any]]:
    for one, row in zip(table.column("id").to_pylist(), matrix(table)):
        yield {
            key: written_id(one, as_number=key == "query_id"),
            "feature": np.asarray(row, np.float32).astype(float).tolist(),
        }


def write_entity_features(
    path: str, caption_ids: Sequence[str], slots: EntitySlots, side: Side, bare_text: npt.NDArray[np.float32] | None
) -> int:
    """Write captions' entities as an original's features; how many lines.

    Args:
        path: of the file.
        caption_ids: M ids.
        slots: of the M captions.
        side: which of the two.
        bare_text: vector of the empty text, of shape (D,), for empty slots.

    Raises:
        InputError: a slot is empty, and the vector of the empty text is not given.
    """
    rows, vectors = (slots.prompt_rows, slots.prompts) if side == "prompts" else (slots.mask_rows, slots.masks)
    lacking = np.flatnonzero(slots.counts < rows.shape[1])
    if bare_text is None and len(lacking):
        raise InputError(
            f"{len(lacking):,} captions, such as {caption_ids[lacking[0]]!r}, have fewer than {rows.shape[1]} "
            "entities; AGREE fills up with the vector of the empty text: give it."
        )

    def feature(row: int) -> list[list[float]]:
        return [
            np.asarray(vectors.take(np.array([at]))[0] if at >= 0 else bare_text, np.float32).astype(float).tolist()
            for at in rows[row].tolist()
        ]

    return write_lines(
        path,
        ({"query_id": written_id(one, as_number=True), "feature": feature(at)} for at, one in enumerate(caption_ids)),
    )
