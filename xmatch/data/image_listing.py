"""Images named one by one: a Parquet table of (id, uri), cut into shards by row."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from xmatch.data import files
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

LISTING_SCHEMA = pa.schema([("id", pa.string()), ("uri", pa.string()), ("bytes", pa.binary())])
"""What image steps read: the id, the place, and the encoded image itself where it travels with the row."""


def image_listing(ids: Sequence[str], uris: Sequence[str]) -> pa.Table:
    """A listing of images that are read from where they are.

    Raises:
        InputError: there are none, or the counts differ.
    """
    if not ids or len(ids) != len(uris):
        raise InputError(f"expected one place for each of at least one image, got {len(ids)} ids, {len(uris)} places.")
    return pa.table([pa.array(list(ids)), pa.array(list(uris)), pa.nulls(len(ids), pa.binary())], LISTING_SCHEMA)


def plan_listing_shards(listing: str, images_per_shard: int) -> list[Shard]:
    """Shards of consecutive rows of a listing."""
    count = files.read_parquet(listing).num_rows
    starts = range(0, count, images_per_shard)
    return [
        Shard(shard_name(index), listing, start, min(count, start + images_per_shard))
        for index, start in enumerate(starts)
    ]


def read_listing(shard: Shard) -> pa.Table:
    """The rows of one shard, in the schema that image steps read."""
    return files.read_parquet(shard.source).slice(shard.start, shard.stop - shard.start)
