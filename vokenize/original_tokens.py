"""Token files as the originals keep them: text, .hdf5 `tokens`, .line and .sent.

The originals drop lines (blank ones, and in wiki corpora headings and short lines); exports drop the same and list
what they drop. Golden `tokenization.json`, `downstream_eval.json`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vokenize.tokens import TOKEN_SCHEMA
from xmatch.data import files
from xmatch.errors import InputError

CorpusFilter = Literal["none", "wiki", "wiki103"]
TOKENS_CHUNK = 1024
MIN_WIKI_WORDS = 5


class DroppedLine(NamedTuple):
    """A line that an original file does not hold."""

    line_id: int
    reason: str


class OriginalTokens(NamedTuple):
    """Contents of a token file: ids of all kept lines joined, and L + 1 cumulative offsets."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


def drop_reason(line: str, corpus_filter: CorpusFilter) -> str:
    """Why the original drops a line before it tokenizes it, or "" where it keeps it.

    The original switches its filters on by the words wiki and wiki103 in the path; here they are named.
    """
    if corpus_filter == "wiki103" and line.startswith(" = "):
        return "heading"
    if corpus_filter == "wiki" and len(line.strip().split(" ")) == 1:
        return "single word"
    if corpus_filter != "none" and len(line.strip().split(" ")) < MIN_WIKI_WORDS:
        return f"fewer than {MIN_WIKI_WORDS} words"
    return "" if line.strip() else "blank"


def export_tokens(tables: Iterable[pa.Table], prefix: str, corpus_filter: CorpusFilter = "none") -> list[DroppedLine]:
    """Write PREFIX, PREFIX.line and PREFIX.hdf5 from canonical token shards.

    Args:
        tables: shards of TOKEN_SCHEMA, in order; read once, one at a time.
        prefix: local path, DATADIR/FNAME.TOKENIZER in the original.
        corpus_filter: which of the original's filters to apply.

    Returns:
        The lines dropped, in order.
    """
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    dropped: list[DroppedLine] = []
    temporary = f"{prefix}.hdf5{files.TEMPORARY_MARK}{os.getpid()}"
    with files.open_atomic(prefix) as text, files.open_atomic(f"{prefix}.line") as line_file:
        with h5py.File(temporary, "w") as store:
            data = store.create_dataset("tokens", (0,), maxshape=(None,), dtype=np.int32, chunks=(TOKENS_CHUNK,))
            line_file.write(b"0\n")
            for table in tables:
                kept: list[list[int]] = []
                for row in table.select(["line_id", "text", "token_ids"]).to_pylist():
                    reason = drop_reason(row["text"], corpus_filter) or ("" if row["token_ids"] else "no tokens")
                    if reason:
                        dropped.append(DroppedLine(row["line_id"], reason))
                    else:
                        kept.append(row["token_ids"])
                start = len(data)
                _append(data, kept)
                text.write("".join(f"{' '.join(map(str, ids))}\n" for ids in kept).encode())
                ends = start + np.cumsum([len(ids) for ids in kept], dtype=np.int64)
                line_file.write("".join(f"{end}\n" for end in ends).encode())
    os.replace(temporary, f"{prefix}.hdf5")
    return dropped


def _append(data: Any, lines: Sequence[Sequence[int]]) -> None:
    joined = np.fromiter((token for line in lines for token in line), np.int32)
    data.resize((len(data) + len(joined),))
    data[len(data) - len(joined) :] = joined


def read_original_tokens(prefix: str, unit: Literal["line", "sent"] = "line") -> OriginalTokens:
    """The .hdf5 of a token file with its .line or .sent.

    Raises:
        InputError: a file is missing or corrupt, or the offsets do not fit the tokens.
    """
    tokens = read_dataset(f"{prefix}.hdf5", "tokens")
    path = f"{prefix}.{unit}"
    try:
        offsets = np.array([int(line) for line in files.read_text(path).split()], dtype=np.int64)
    except ValueError as error:
        raise InputError(f"{path!r} must hold one number a line: {error}.") from error
    if len(offsets) < 1 or offsets[0] != 0 or (np.diff(offsets) <= 0).any() or offsets[-1] != len(tokens):
        end = offsets[-1] if len(offsets) else "nothing"
        raise InputError(
            f"{path!r} must rise from 0 to the {len(tokens)} tokens of {prefix + '.hdf5'!r}; it ends at {end}. The two "
            "files are of different runs, or one is truncated."
        )
    return OriginalTokens(tokens, offsets)


def read_dataset(path: str, name: str) -> npt.NDArray[np.int32]:
    """A one-dimensional dataset of whole numbers of an HDF5 file, as int32 of shape (N,).

    Raises:
        InputError: the file is missing or corrupt, has no such dataset, or it holds other numbers than int32 can.
    """
    if not os.path.exists(path):
        raise InputError(f"{path!r} does not exist; expected an HDF5 file with dataset {name!r}.")
    try:
        with h5py.File(path, "r") as store:
            if name not in store or store[name].ndim != 1:
                raise InputError(f"{path!r} has no one-dimensional dataset {name!r}; it holds {sorted(store)}.")
            found = store[name]
            if found.external or found.is_virtual or found.file.filename != store.filename:
                raise InputError(f"{path!r}: dataset {name!r} lies in another file; expected one that holds its data.")
            return _as_int32(found, path, name)
    except OSError as error:
        raise InputError(f"{path!r} is not a whole HDF5 file ({error}); make it again.") from error


def _as_int32(data: Any, path: str, name: str) -> npt.NDArray[np.int32]:
    """A dataset of whole numbers as int32, in its own shape."""
    if not np.issubdtype(data.dtype, np.integer):
        raise InputError(
            f"{path!r}: dataset {name!r} is {data.dtype}; expected whole numbers, int32 as the original's."
        )
    values = data[:]
    limits = np.iinfo(np.int32)
    outside = np.flatnonzero((values < limits.min) | (values > limits.max))
    if len(outside):
        at = int(outside[0])
        raise InputError(
            f"{path!r}, dataset {name!r}, row {at}: {values[at]} is no int32; the file is of another kind."
        )
    narrow: npt.NDArray[np.int32] = values.astype(np.int32)
    return narrow


def import_tokens(prefix: str, tokenizer: Any) -> pa.Table:
    """The originals' token files as a canonical table, a row per kept line.

    The original text is gone; `text` is what the tokenizer makes of the ids, token strings joined by spaces, and the
    character offsets are into that.
    """
    found = read_original_tokens(prefix)
    if len(found.tokens) and not 0 <= found.tokens.min() <= found.tokens.max() < len(tokenizer):
        row = int(np.flatnonzero((found.tokens < 0) | (found.tokens >= len(tokenizer)))[0])
        raise InputError(
            f"{prefix + '.hdf5'!r}, token {row}: id {found.tokens[row]} is outside the "
            f"tokenizer's {len(tokenizer)} words."
        )
    rows: list[tuple[int, str, list[int], list[int], list[int], list[int]]] = []
    for line_id, (start, stop) in enumerate(zip(found.offsets, found.offsets[1:], strict=False)):
        ids = found.tokens[start:stop].tolist()
        words = tokenizer.convert_ids_to_tokens(ids)
        starts = np.concatenate([[0], np.cumsum([len(word) + 1 for word in words])[:-1]]).astype(int).tolist()
        ends = [s + len(word) for s, word in zip(starts, words, strict=True)]
        rows.append((line_id, " ".join(words), ids, starts, ends, [0] * len(ids)))
    columns = list(zip(*rows, strict=True)) or [()] * len(TOKEN_SCHEMA)
    arrays = [pa.array(list(column), f.type) for column, f in zip(columns, TOKEN_SCHEMA, strict=True)]
    return pa.table(arrays, schema=TOKEN_SCHEMA)


def sentence_lengths(tokens: Sequence[str], sentencizer: Any) -> list[int]:
    """Lengths in tokens of a line's sentences, as the original finds them.

    Args:
        tokens: token strings; [UNK] reads as UNK.
        sentencizer: `load_sentencizer()`.

    Raises:
        InputError: a token holds a space or a sentence break, so that pieces and tokens do not agree.
    """
    words = ["UNK" if token == "[UNK]" else token for token in tokens]
    lengths = [len(sentence.text.strip().split(" ")) for sentence in sentencizer(" ".join(words)).sents]
    if sum(lengths) != len(tokens):
        raise InputError(
            f"sentences of {sum(lengths)} pieces do not cover {len(tokens)} tokens: {' '.join(words)[:80]!r}."
        )
    return lengths


def load_sentencizer() -> Any:
    """SpaCy's blank English pipeline with its rule sentencizer.

    Raises:
        InputError: spaCy is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise InputError("sentence units need spaCy: install vokenray[sentences].") from error
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    return pipeline


def sentence_offsets(lines: npt.NDArray[np.int64], tokens: Sequence[str], sentencizer: Any) -> list[int]:
    """Contents of .sent from .line, of shape (L + 1,): cumulative offsets of sentences, beginning with 0."""
    offsets = [0]
    for start, stop in zip(lines, lines[1:], strict=False):
        for length in sentence_lengths(tokens[start:stop], sentencizer):
            offsets.append(offsets[-1] + length)
    return offsets
