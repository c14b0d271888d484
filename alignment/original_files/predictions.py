"""AGREE's lists of predictions: ids alone, and the 4-tuples of entity-guided re-ranking."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from alignment.original_files.json_lines import Line, id_texts, read_lines, unique_ids, write_lines, written_id
from alignment.rerank.candidates import ENTITY_COLUMNS, PREDICTION_SCHEMA
from xmatch.errors import InputError

Key = Literal["query_id", "image_id"]
"""Who asks: captions, whose items are images, or images, whose items are captions."""
TUPLE = 4
"""[id, q, a, final] of entity-guided re-ranking."""


def read_prediction_lines(path: str) -> tuple[pa.Table, Key]:
    """A file of predictions as a predictions table, with the columns of ENTITY_COLUMNS where it has 4-tuples.

    Items may be ids, or lists that begin with one: of four, the others are scores; else they are dropped.

    Raises:
        InputError: a line is broken, or ids are of mixed types; names file and lines.
    """
    lines = list(read_lines(path))
    key = _key(lines, path)
    queries = unique_ids([(line.number, line.entry.get(key)) for line in lines], key, path)
    items = [(line.number, item) for line in lines for item in line.value("item_ids", list, path)]
    lengths = [len(line.entry["item_ids"]) for line in lines]
    are_lists = [isinstance(item, list) for _, item in items]
    if any(are_lists) and not all(are_lists):
        at = items[are_lists.index(not are_lists[0])][0]
        raise InputError(f"{path!r}, line {at}: some items are ids and some are lists; expected one form.")
    firsts = [(number, item[0] if isinstance(item, list) and item else item) for number, item in items]
    ids = id_texts(firsts, "item_ids", path)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = [pa.array(queries, pa.string()), pa.ListArray.from_arrays(offsets, pa.array(ids, pa.string()))]
    if not (items and all(are_lists) and all(len(item) == TUPLE for _, item in items)):
        nothing = pa.nulls(len(lines), PREDICTION_SCHEMA.field("scores").type)
        return pa.table([*columns, nothing], schema=PREDICTION_SCHEMA), key
    scores = [_scores(item, path, number) for number, item in items]
    more = [pa.ListArray.from_arrays(offsets, pa.array([one[at] for one in scores], pa.float32())) for at in range(3)]
    table = pa.table([*columns, more[2]], schema=PREDICTION_SCHEMA)
    for name, column in zip(ENTITY_COLUMNS, more):
        table = table.append_column(name, column)
    return table, key


def _key(lines: list[Line], path: str) -> Key:
    if not lines:
        raise InputError(f"{path!r} is empty; expected predictions, one query a line.")
    for key in ("query_id", "image_id"):
        if key in lines[0].entry:
            lacking = [line.number for line in lines if key not in line.entry]
            if lacking:
                raise InputError(f"{path!r}, line {lacking[0]}: no {key!r}, which line {lines[0].number} has.")
            return "query_id" if key == "query_id" else "image_id"
    raise InputError(f"{path!r}, line {lines[0].number}: neither 'query_id' nor 'image_id'; expected one of them.")


def _scores(item: list[Any], path: str, number: int) -> list[float]:
    for value in item[1:]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise InputError(f"{path!r}, line {number}: the item {item!r:.80} has a score that is no finite number.")
    return [float(value) for value in item[1:]]


def write_prediction_lines(path: str, table: pa.Table, key: Key) -> None:
    """Write a predictions table as an original's file: 4-tuples where it has ENTITY_COLUMNS, else ids alone.

    Text ids that are whole numbers become numbers, image ids stay texts: so the originals' own programs write them.
    """
    write_lines(path, (_entry(row, key) for batch in table.to_batches() for row in batch.to_pylist()))


def _entry(row: dict[str, Any], key: Key) -> dict[str, Any]:
    are_texts = key == "image_id"
    items: list[Any] = [written_id(one, as_number=are_texts) for one in row["item_ids"]]
    if all(row.get(name) is not None for name in (*ENTITY_COLUMNS, "scores")):
        items = [list(four) for four in zip(items, row["similarities"], row["first_scores"], row["scores"])]
    return {key: written_id(row["query_id"], as_number=not are_texts), "item_ids": items}
