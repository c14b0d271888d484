"""Token shards: every line of the corpus with its token ids, character offsets and turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from vokenize.list_columns import blanked, list_column, values_of
from vokenize.ragged import starts_of
from xmatch.data import files
from xmatch.data.steps import Shard, StepOutput, no_quarantine
from xmatch.errors import InputError
from xmatch.models.staging import local_folder

TOKEN_SCHEMA = pa.schema(
    [
        pa.field("line_id", pa.int64(), nullable=False),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("turns", pa.list_(pa.int16())),
    ]
)
"""One row a line. The four lists have one entry a token and are null for a line without tokens; `starts` and `ends`
are character offsets into `text`; `turns` counts the tabs before the token."""


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer by folder, URI, hub name (NAME@REVISION pins it) or staged folder.

    Raises:
        InputError: it cannot be found, or is not a fast one.
    """
    try:
        folder = local_folder(name, "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except InputError as error:
        raise InputError(f"cannot load the tokenizer {name!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the tokenizer {name!r}: {str(error).splitlines()[0]} Give a folder with tokenizer.json or a "
            "hub name."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {name!r} gives no character offsets; use one with a tokenizer.json.")
    return tokenizer


class TokenizeLines:
    """A step: rows of (line_id, text) to rows of TOKEN_SCHEMA, every line kept, no special tokens."""

    def __init__(self, tokenizer: str) -> None:
        self.name = tokenizer
        self._tokenizer: Any = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Tokens of one shard."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name)
        table = tokenize(self._tokenizer, rows.column("line_id").to_pylist(), rows.column("text").to_pylist())
        tokens = len(values_of(table["token_ids"]))
        empty = table["token_ids"].null_count
        return StepOutput(table, {"lines": len(table), "tokens": tokens, "empty_lines": empty}, no_quarantine())

    def leave_out(self, rows: pa.Table, positions: Sequence[int]) -> pa.Table:
        """The rows with some texts empty: every line of the corpus keeps its row."""
        return blanked(rows, "text", positions, "")


def tokenize(tokenizer: Any, line_ids: list[int], texts: list[str]) -> pa.Table:
    """Lines to a table of TOKEN_SCHEMA.

    Args:
        tokenizer: a fast one; whole lines are tokenized, whatever padding or truncation it was saved with.
        line_ids: (n,) of the lines.
        texts: (n,) the lines.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
    total, chained = int(counts.sum()), itertools.chain.from_iterable
    ids = np.fromiter(chained(encoding.ids for encoding in encodings), np.int32, total)
    offsets = np.fromiter(chained(chained(encoding.offsets for encoding in encodings)), np.int32, 2 * total)
    starts, ends = offsets[::2], offsets[1::2]
    turns, first = np.zeros(total, np.int16), starts_of(counts)
    for line in (at for at, text in enumerate(texts) if "\t" in text):
        own = slice(first[line], first[line] + counts[line])
        turns[own] = [texts[line].count("\t", 0, start) for start in starts[own].tolist()]
    columns = [
        list_column(flat, counts, counts == 0, TOKEN_SCHEMA.field(name).type)
        for name, flat in (("token_ids", ids), ("starts", starts), ("ends", ends), ("turns", turns))
    ]
    return pa.table([pa.array(line_ids, pa.int64()), pa.array(texts, pa.string()), *columns], schema=TOKEN_SCHEMA)


def token_shard_files(folder: str) -> list[str]:
    """The token files of a run's folder (or of its `shards` folder), in order.

    Raises:
        InputError: there are none.
    """
    if not files.is_folder(folder):
        raise InputError(f"token folder {folder!r} does not exist; make it with jobs/tokenize_corpus.py.")
    found = files.list_files(folder, ".parquet") or files.list_files(files.join(folder, "shards"), ".parquet")
    if not found:
        raise InputError(f"no token shards in {folder!r}; make them with jobs/tokenize_corpus.py.")
    return found


def plan_token_shards(folder: str) -> list[Shard]:
    """One shard per token file; `start` and `stop` count lines from the corpus's beginning.

    Raises:
        InputError: a file is no whole Parquet file of TOKEN_SCHEMA.
    """
    shards, first = [], 0
    for path in token_shard_files(folder):
        filesystem, inside = files.filesystem_of(path)
        try:
            with filesystem.open_input_file(inside) as source:
                footer = pq.ParquetFile(source)
                rows, names = footer.metadata.num_rows, footer.schema_arrow.names
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path!r} is not a whole Parquet file ({error}); make the token shards again.") from error
        if not {"line_id", "token_ids"} <= set(names):
            raise InputError(f"{path!r} has columns {names}; expected token shards of jobs/tokenize_corpus.py.")
        shards.append(Shard(path.rsplit("/", 1)[-1].removesuffix(".parquet"), path, first, first + rows))
        first += rows
    return shards


def known_tokens(folder: str) -> int:
    """Tokens of a corpus, if its manifest says so; else 0."""
    manifest = files.join(folder, "manifest.json")
    return int(files.read_json(manifest)["counts"].get("tokens", 0)) if files.exists(manifest) else 0


def corpus_bytes(shards: Sequence[Shard]) -> int:
    """Bytes of the files of token shards."""
    folders = {shard.source.rsplit("/", 1)[0] for shard in shards}
    sizes = {f"{folder}/{name}": size for folder in folders for name, size in files.sizes(folder).items()}
    return sum(sizes[shard.source] for shard in shards)


def read_token_shard(shard: Shard) -> pa.Table:
    """The rows of a token shard.

    Raises:
        InputError: the file is broken, or its line ids are not consecutive.
    """
    table = files.read_parquet(shard.source)
    line_ids = table.column("line_id").to_numpy()
    if len(line_ids) and (line_ids[1:] - line_ids[:-1] != 1).any():
        raise InputError(f"{shard.source!r}: line_id must count up by one; the file was altered or joined wrongly.")
    return table
