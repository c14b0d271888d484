"""Voken shards: read, and held against the token shards they were made from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vokenize.vokenizer import SCHEMA_VERSION, VOKEN_SCHEMA
from xmatch.data import files
from xmatch.errors import InputError


def voken_info(table: pa.Table, where: str) -> dict[str, Any]:
    """What a voken shard says of itself: schema, top_k, level and number of keys.

    Raises:
        InputError: it is no voken shard of this schema version.
    """
    raw = (table.schema.metadata or {}).get(b"vokenray")
    info: dict[str, Any] = json.loads(raw) if raw else {}
    if info.get("schema") != SCHEMA_VERSION or not set(VOKEN_SCHEMA.names) <= set(table.column_names):
        raise InputError(
            f"{where!r} is no voken shard of schema {SCHEMA_VERSION}; make it with jobs/vokenize_corpus.py."
        )
    return info


def read_voken_shard(path: str) -> pa.Table:
    """A voken shard in VOKEN_SCHEMA, with its metadata.

    Raises:
        InputError: the file is broken or is no voken shard.
    """
    table = files.read_parquet(path)
    voken_info(table, path)
    return table


def check_vokens(tokens: pa.Table, vokens: pa.Table, where: str) -> None:
    """Check vokens against their tokens: the same lines in the same order, and k vokens for every token.

    Raises:
        InputError: a line is missing, moved, or has another number of vokens; or a voken is out of the key bank.
    """
    info = voken_info(vokens, where)
    if not tokens.column("line_id").equals(vokens.column("line_id")):
        raise InputError(f"{where!r} has other lines than its token shard; vokens and tokens come from different runs.")
    if info["level"] != "sentence":
        expected = pc.fill_null(pc.list_value_length(tokens.column("token_ids")), 0).to_numpy() * info["top_k"]
        there = pc.fill_null(pc.list_value_length(vokens.column("vokens")), 0).to_numpy()
        wrong = np.flatnonzero(expected != there)
        if len(wrong):
            line = vokens.column("line_id")[int(wrong[0])].as_py()
            raise InputError(f"{where!r}, line {line}: {there[wrong[0]]} vokens for {expected[wrong[0]]} places.")
    for name in ("vokens", "sentence_vokens"):
        values = pc.list_flatten(vokens.column(name))
        if len(values) and not 0 <= pc.min(values).as_py() <= pc.max(values).as_py() < info["keys"]:
            raise InputError(f"{where!r}: column {name} leaves the key bank of {info['keys']} images.")
