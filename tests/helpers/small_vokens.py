"""Voken runs without a model: drawn at random for tokenized lines, written as the jobs write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vokenize.tokens import tokenize
from vokenize.vokenizer import VOKEN_SCHEMA
from vokenize.windows import window_lengths
from xmatch.data import files
from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, write_vectors


def random_vokens(tokens: pa.Table, level: str = "both", k: int = 2, keys: int = 9, seed: int = 0) -> pa.Table:
    """Vokens of a token shard in VOKEN_SCHEMA; lines of more than 4 tokens have several pieces."""
    rng = np.random.default_rng(seed)

    def drawn(queries: int) -> tuple[list[int], list[float]]:
        ids = [rng.permutation(keys)[:k] for _ in range(queries)]
        flat = np.concatenate(ids) if ids else np.zeros(0)
        return flat.astype(int).tolist(), rng.random(queries * k).astype(np.float32).tolist()

    rows = []
    for line, ids in zip(tokens.column("line_id").to_pylist(), tokens.column("token_ids").to_pylist(), strict=True):
        pieces = window_lengths(len(ids or ()), 4)
        at_tokens = drawn(len(ids)) if ids and level != "sentence" else (None, None)
        at_pieces = drawn(len(pieces)) if ids and level != "token" else (None, None)
        rows.append((line, pieces or None, *at_tokens, *at_pieces))
    info = {"schema": 1, "top_k": k, "level": level, "keys": keys}
    schema = VOKEN_SCHEMA.with_metadata({"vokenray": json.dumps(info, sort_keys=True)})
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, VOKEN_SCHEMA, strict=True)], schema=schema)


def write_tokens(folder: Path, tokenizer: Any, texts: Sequence[str], lines_per_shard: int = 4) -> list[pa.Table]:
    """A token run; its shards."""
    shards = []
    for first in range(0, len(texts), lines_per_shard):
        lines = list(texts[first : first + lines_per_shard])
        shards.append(tokenize(tokenizer, list(range(first, first + len(lines))), lines))
        files.write_parquet(str(folder / "shards" / f"part-{len(shards) - 1:05d}.parquet"), shards[-1])
    tokens = sum(len(ids) for shard in shards for ids in shard.column("token_ids").to_pylist() if ids)
    files.write_json(str(folder / "manifest.json"), {"counts": {"lines": len(texts), "tokens": tokens}})
    return shards


def write_vokens(folder: Path, tokens: Path, shards: Sequence[pa.Table], keys_hash: str = "bank", **settings) -> None:
    """A voken run over these shards of the token run in `tokens`."""
    for number, shard in enumerate(shards):
        vokens = random_vokens(shard, **{"seed": number, **settings})
        files.write_parquet(str(folder / "shards" / f"part-{number:05d}.parquet"), vokens)
    identity = {"tokens": files.sha256(str(tokens / "manifest.json")), "keys": keys_hash, "model": "m"}
    files.write_json(str(folder / "identity.json"), identity)
    files.write_json(str(folder / "manifest.json"), {"counts": {}, "settings": repr(settings)})


def write_bank(folder: Path, ids: Sequence[str]) -> str:
    """A key bank with these ids, whose images lie in a folder `images`; its hash."""
    rows = np.eye(len(ids), dtype=np.float32)
    uris = [f"images/{uid.split('/', 1)[1]}.jpg" for uid in ids]
    write_vectors(str(folder / "shards" / "part-00000.arrow"), make_vectors(list(ids), rows, uris=uris))
    return open_key_bank(str(folder)).hash
