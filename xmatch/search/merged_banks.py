"""A bank without its duplicates: the rows that stay, and who stands for those that do not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from xmatch.data.key_banks import KeyBank
from xmatch.data.key_shards import BLOCK_ROWS, vector_table
from xmatch.search.near_duplicates import cosines
from xmatch.search.scores import Int64

ALIAS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("stands_for", pa.string(), nullable=False),
        pa.field("similarity", pa.float64(), nullable=False),
    ]
)
"""One row for each image that was left out: its id, the id that stands for it, and the cosine between the two. In a
chain of near duplicates that may be less than the threshold; between two zero vectors it is given as 1."""


def alias_table(bank: KeyBank, labels: Int64) -> pa.Table:
    """Who stands for whom, in the schema ALIAS_SCHEMA, by row.

    Args:
        bank: with N rows.
        labels: (N,) the row that stands for each row; its own number where it stays.
    """
    gone = np.flatnonzero(labels != np.arange(len(labels)))
    similarities = np.ones(len(gone))
    starts = range(0, len(gone), BLOCK_ROWS)
    has_length = [bank.rows[labels[gone[start : start + BLOCK_ROWS]]].astype(np.bool_).any(1) for start in starts]
    directed = np.flatnonzero(np.concatenate([np.empty(0, np.bool_), *has_length]))
    similarities[directed] = cosines(bank.rows, gone[directed], labels[gone[directed]])
    ids = (bank.ids.take(pa.array(rows)) for rows in (gone, labels[gone]))
    return pa.table([*ids, pa.array(similarities)], schema=ALIAS_SCHEMA)


def kept_tables(bank: KeyBank, labels: Int64, rows_per_shard: int) -> Iterator[pa.Table]:
    """The rows that stay, as tables of vectors, in their order."""
    kept = np.flatnonzero(labels == np.arange(len(labels)))
    for start in range(0, len(kept), rows_per_shard):
        part = kept[start : start + rows_per_shard]
        yield vector_table(bank.info.take(pa.array(part)), bank.rows[part])
