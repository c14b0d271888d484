"""The chain for one shard: tokens to queries to the best images, which are the vokens.

Shapes: P pieces (encoder windows), T tokens of all of them, D the shared space, k images per query.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from vokenize.list_columns import blanked, counts_of, list_column, values_of
from vokenize.ragged import Int64, distinct, ranges, starts_of
from vokenize.text_encoder import DualEncoderText, Float32, Precision, TextEncoder
from vokenize.windows import WindowPolicy, window_lengths
from xmatch.data.steps import StepOutput, no_quarantine
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.search import Searcher
from xmatch.search.approximate_config import ApproximateConfig
from xmatch.search.contract import TopK
from xmatch.search.open_bank import OpenBank, bank_shape

SCHEMA_VERSION = 1
VOKEN_SCHEMA = pa.schema(
    [
        pa.field("line_id", pa.int64(), nullable=False),
        ("piece_lengths", pa.list_(pa.int32())),
        ("vokens", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("sentence_vokens", pa.list_(pa.int32())),
        ("sentence_scores", pa.list_(pa.float32())),
    ]
)
"""One row a line. `vokens` and `scores` have k entries a token, token by token, best first; `sentence_vokens` and
`sentence_scores` k entries a piece. All lists are null for a line without tokens, and those of a level that was not
asked for are null throughout. A voken is the row of an image in the key bank; scores are inner products."""


@dataclass(frozen=True, kw_only=True)
class VokenizeConfig:
    """How vokens are assigned."""

    level: Literal["token", "sentence", "both"] = "token"
    """`token`: images for every token (Vokenization). `sentence`: for every line (Maria). `both`: in one pass."""
    top_k: int = 1
    """Images per token or line."""
    window: int = 128
    """Most tokens the encoder sees at once, without special tokens; longer lines are cut into pieces."""
    window_policy: WindowPolicy = "balanced"
    """`balanced`: pieces of equal length. `original`: as the originals cut, with tiny tails."""
    tokens_per_batch: int = 4096
    """Padded tokens in one forward pass; part of what makes the output repeat bit for bit."""
    precision: Precision = "float32"
    """Number format of the text tower: `bfloat16` is faster where the processor or GPU has it, and moves a few vokens
    whose best images are nearly equal."""
    threads: int = 1
    """torch and search threads of each actor; part of what makes the output repeat bit for bit."""
    backend: Literal["auto", "native", "torch", "triton", "faiss", "ivf", "ivfpq", "hnsw", "cagra"] = "auto"
    """Search backend. The first five give the same, exact answer. The others are approximate, for banks too large to be
    scanned; their recall on a sample is in the manifest."""
    approximate: ApproximateConfig = field(default_factory=ApproximateConfig)
    """How an approximate index is built and asked."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the text tower runs, and the search beside it."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        if min(self.top_k, self.window, self.tokens_per_batch, self.threads) < 1:
            raise InputError("vokenize: top_k, window, tokens_per_batch and threads must be at least 1.")


class Assigned(NamedTuple):
    """Vokens of P pieces of T tokens in all; None where not asked for.

    Attributes:
        tokens: (T, k) int64, images of each token, piece by piece.
        token_scores: (T, k) float32.
        sentences: (P, k) int64, images of each piece.
        sentence_scores: (P, k) float32.
    """

    tokens: Int64 | None
    token_scores: Float32 | None
    sentences: Int64 | None
    sentence_scores: Float32 | None


def assign_vokens(
    tokens: Int64,
    lengths: Int64,
    encoder: TextEncoder,
    searcher: TopK,
    level: str,
    k: int,
    seconds: dict[str, float] | None = None,
) -> Assigned:
    """The best images of each piece's tokens, of each piece, or of both.

    Args:
        tokens: (T,) token ids of P pieces end to end, without special tokens.
        lengths: (P,) tokens of each piece, none 0.
        encoder: makes the queries.
        searcher: over the key bank.
        level: "token", "sentence" or "both".
        k: images per query.
        seconds: time spent in "encoder" and "search" is added here.
    """
    clock, starts = seconds if seconds is not None else {}, starts_of(lengths)
    at_tokens = _empty(len(tokens), k) if level != "sentence" else (None, None)
    at_pieces = _empty(len(lengths), k) if level != "token" else (None, None)
    groups = encoder.encode(tokens, lengths)
    started = time.perf_counter()
    for group in groups:
        encoded = time.perf_counter()
        if at_tokens[0] is not None:
            found = searcher.search(group.tokens, k)
            own = ranges(starts[group.pieces], lengths[group.pieces])
            at_tokens[0][own], at_tokens[1][own] = found.ids, found.scores
        if at_pieces[0] is not None:
            found = searcher.search(group.sentences, k)
            at_pieces[0][group.pieces], at_pieces[1][group.pieces] = found.ids, found.scores
        searched = time.perf_counter()
        clock["encoder"] = clock.get("encoder", 0.0) + encoded - started
        clock["search"] = clock.get("search", 0.0) + searched - encoded
        started = searched
    return Assigned(*at_tokens, *at_pieces)


def _empty(rows: int, k: int) -> tuple[Int64, Float32]:
    return np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)


class VokenizeShard:
    """A step: a token shard to its vokens. Identical pieces are encoded once.

    Args:
        model: dual encoder.
        keys: key bank of images.
        config: how vokens are assigned.
        searcher: over that bank, where it does not lie in this process; else the bank is opened here.
    """

    def __init__(self, model: str, keys: str, config: VokenizeConfig, searcher: TopK | None = None) -> None:
        self.model, self.keys, self.config, self.searcher = model, keys, config, searcher
        self.seconds: dict[str, float] = {}
        self.tallies: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self._ready: tuple[TextEncoder, TopK, int] | None = None

    def _load(self) -> tuple[TextEncoder, TopK, int]:
        if self._ready is None:
            started = time.perf_counter()
            torch.set_num_threads(self.config.threads)
            device = self.config.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            model = DualEncoder.from_pretrained(self.model).to(device).eval()
            keys, width = bank_shape(self.keys)[:2]
            if self.config.level != "sentence" and model.embedding_width != model.config.dim:
                raise InputError(
                    f"the tokens of {self.model!r} are {model.config.dim} wide and its images {model.embedding_width}, "
                    "for its context head sees whole sentences alone. Use vokenize.level=sentence."
                )
            if width != model.embedding_width:
                raise InputError(
                    f"the key bank {self.keys!r} has vectors of width {width}, the model {self.model!r} makes "
                    f"width {model.embedding_width}. Make the keys with this model: jobs/embed.py --side image."
                )
            if keys < self.config.top_k:
                raise InputError(f"top_k is {self.config.top_k}, but {self.keys!r} has only {keys} images.")
            encoder = DualEncoderText(model, self.config.tokens_per_batch, self.config.precision)
            searcher = self.searcher or open_bank(self.keys, self.config)(0, keys, self.config.threads)
            self._ready = encoder, searcher, encoder.vocabulary
            self.seconds["load"] = time.perf_counter() - started
        return self._ready

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vokens of one shard, a row for every line of it.

        Raises:
            InputError: a token id is out of the vocabulary; names the line.
        """
        encoder, searcher, vocabulary = self._load()
        check_vocabulary(rows, vocabulary)
        table = vokenize_rows(rows, encoder, searcher, self.config, self.seconds)
        tokens = len(values_of(rows["token_ids"]))
        if isinstance(searcher, Searcher):
            self.notes["backend"] = searcher.backend
            self.tallies = searcher.counts._asdict()
        return StepOutput(table, {"lines": len(rows), "tokens": tokens, "vokens": tokens}, no_quarantine())

    def leave_out(self, rows: pa.Table, positions: Sequence[int]) -> pa.Table:
        """The rows with some lines as if they had no tokens: every line of the corpus keeps its row."""
        return blanked(rows, "token_ids", positions, None)

    def queries(self, rows: pa.Table) -> Float32:
        """What is searched for of a shard's rows, (Q, D): tokens, or sentences where only these are wanted."""
        encoder, _, _ = self._load()
        pieces = pieces_of(counts_of(rows["token_ids"]), self.config)[1]
        groups = encoder.encode(values_of(rows["token_ids"]).astype(np.int64), pieces)
        return np.concatenate([g.sentences if self.config.level == "sentence" else g.tokens for g in groups])


def open_bank(keys: str, config: VokenizeConfig) -> OpenBank:
    """How the key bank is searched."""
    return OpenBank(keys, config.backend, config.device, config.approximate)


def check_vocabulary(rows: pa.Table, size: int) -> None:
    """Check that every token id of a token shard is in a vocabulary of that size.

    Raises:
        InputError: one is not; names line and id.
    """
    tokens = values_of(rows["token_ids"])
    wrong = np.flatnonzero((tokens < 0) | (tokens >= size))
    if len(wrong):
        line = int(np.searchsorted(np.cumsum(counts_of(rows["token_ids"])), wrong[0], side="right"))
        raise InputError(
            f"line {rows['line_id'][line]} has token id {tokens[wrong[0]]}, but the model's vocabulary has {size} "
            "words. The corpus was tokenized with another tokenizer; run jobs/tokenize_corpus.py with this model's."
        )


def pieces_of(counts: Int64, config: VokenizeConfig) -> tuple[Int64, Int64]:
    """(lines,) int64 pieces of each line, and (P,) int64 tokens of each piece, from (lines,) tokens of each line."""
    if not (counts > config.window).any():
        return (counts > 0).astype(np.int64), counts[counts > 0]
    pieces = [window_lengths(count, config.window, config.window_policy) for count in counts.tolist()]
    return np.array([len(p) for p in pieces], np.int64), np.array([n for p in pieces for n in p], np.int64)


def vokenize_rows(
    rows: pa.Table,
    encoder: TextEncoder,
    searcher: TopK,
    config: VokenizeConfig,
    seconds: dict[str, float] | None = None,
) -> pa.Table:
    """Lines of token ids to a table of VOKEN_SCHEMA; a line without tokens (null or empty) has null lists.

    Identical pieces are encoded and searched once.

    Args:
        rows: line_id int64 and token_ids list<int32>, a row a line.
        encoder: makes the queries.
        searcher: over the key bank.
        config: level, images per query, windows.
        seconds: time of the stages is added here.
    """
    k, tokens = config.top_k, values_of(rows["token_ids"]).astype(np.int64)
    counts = counts_of(rows["token_ids"])
    per_line, lengths = pieces_of(counts, config)
    unique, which = distinct(tokens, lengths)
    own = tokens[ranges(starts_of(lengths)[unique], lengths[unique])]
    found = assign_vokens(own, lengths[unique], encoder, searcher, config.level, k, seconds)
    at_tokens = ranges(starts_of(lengths[unique])[which], lengths)
    empty = counts == 0
    columns = [
        rows["line_id"].cast(pa.int64()),
        list_column(lengths.astype(np.int32), per_line, empty, pa.list_(pa.int32())),
        _column(found.tokens, at_tokens, counts, empty, pa.list_(pa.int32())),
        _column(found.token_scores, at_tokens, counts, empty, pa.list_(pa.float32())),
        _column(found.sentences, which, per_line, empty, pa.list_(pa.int32())),
        _column(found.sentence_scores, which, per_line, empty, pa.list_(pa.float32())),
    ]
    info = {"schema": SCHEMA_VERSION, "top_k": k, "level": config.level, "keys": searcher.key_count}
    return pa.table(columns, schema=VOKEN_SCHEMA.with_metadata({"vokenray": json.dumps(info, sort_keys=True)}))


def _column(
    found: npt.NDArray[Any] | None, places: Int64, counts: Int64, empty: npt.NDArray[np.bool_], kind: pa.DataType
) -> pa.Array:
    """Results (R, k) at `places`, as one list a line; nulls throughout where there are none."""
    if found is None:
        return pa.nulls(len(counts), kind)
    flat = found[places].astype(kind.value_type.to_pandas_dtype()).reshape(-1)
    return list_column(flat, counts * found.shape[1], empty, kind)
