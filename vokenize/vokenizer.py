"""The chain for one shard: tokens to queries to the best images, which are the vokens.

Shapes: P pieces (encoder windows), L tokens of a piece, D the shared space, k images per query.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from vokenize.windows import WindowPolicy, cut, window_lengths
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

Float32 = npt.NDArray[np.float32]


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


class TextEncoder(Protocol):
    """Encodes pieces of token ids, without special tokens."""

    def encode(self, pieces: Sequence[Sequence[int]], level: str) -> tuple[list[Float32], Float32]:
        """Unit embeddings of each piece's own tokens, (L, D) each, and of each piece, (P, D); empty if not asked."""
        ...


class Assigned(NamedTuple):
    """Vokens of one piece: (L, k) ids and scores of its tokens, (k,) of the piece; None where not asked for."""

    tokens: npt.NDArray[np.int64] | None
    token_scores: Float32 | None
    sentence: npt.NDArray[np.int64] | None
    sentence_scores: Float32 | None


class DualEncoderText:
    """The text tower of a dual encoder, fed with token ids in batches of a padded-token budget."""

    def __init__(self, model: DualEncoder, tokens_per_batch: int) -> None:
        self.model, self.tokens_per_batch = model, tokens_per_batch
        tokenizer = model.tokenizer
        self.vocabulary = len(tokenizer)
        probe = tokenizer("", add_special_tokens=True)["input_ids"]
        self.prefix, self.suffix = probe[: len(probe) // 2], probe[len(probe) // 2 :]
        self.pad = tokenizer.pad_token_id

    def encode(self, pieces: Sequence[Sequence[int]], level: str) -> tuple[list[Float32], Float32]:
        """Embeddings of pieces; the batches are a function of the pieces alone."""
        order = sorted(range(len(pieces)), key=lambda i: (len(pieces[i]), tuple(pieces[i])))
        tokens: list[Float32] = [np.zeros((0, 0), np.float32)] * len(pieces)
        sentences = np.zeros((len(pieces), self.model.config.dim), np.float32)
        for batch in self._batches(pieces, order):
            ids, mask = self._pad([pieces[i] for i in batch])
            with torch.inference_mode():
                at_tokens, at_sentence = self.model.embed_text_both(ids, mask)
            if level != "sentence":
                found = at_tokens.float().cpu().numpy()
                for row, i in enumerate(batch):
                    first = len(self.prefix)
                    tokens[i] = found[row, first : first + len(pieces[i])]
            sentences[batch] = at_sentence.float().cpu().numpy()
        return tokens, sentences

    def _batches(self, pieces: Sequence[Sequence[int]], order: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for i in order:
            width = len(pieces[i]) + len(self.prefix) + len(self.suffix)
            if not batches or (len(batches[-1]) + 1) * width > self.tokens_per_batch:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _pad(self, pieces: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[*self.prefix, *piece, *self.suffix] for piece in pieces]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)


def assign_vokens(
    pieces: Sequence[Sequence[int]],
    encoder: TextEncoder,
    searcher: TopK,
    level: str,
    k: int,
    seconds: dict[str, float] | None = None,
) -> list[Assigned]:
    """The best images of each piece's tokens, of each piece, or of both.

    Args:
        pieces: P lists of token ids, without special tokens, none empty.
        encoder: makes the queries.
        searcher: over the key bank.
        level: "token", "sentence" or "both".
        k: images per query.
        seconds: time spent in "encoder" and "search" is added here.

    Returns:
        P results, in order.
    """
    if not pieces:
        return []
    clock = seconds if seconds is not None else {}
    started = time.perf_counter()
    tokens, sentences = encoder.encode(pieces, level)
    encoded = time.perf_counter()
    results = [Assigned(None, None, None, None)] * len(pieces)
    if level != "sentence":
        found = searcher.search(np.concatenate(tokens), k)
        ends = np.cumsum([len(piece) for piece in pieces])[:-1]
        ids, scores = np.split(found.ids, ends), np.split(found.scores, ends)
        results = [r._replace(tokens=i, token_scores=s) for r, i, s in zip(results, ids, scores, strict=True)]
    if level != "token":
        whole = searcher.search(sentences, k)
        results = [
            r._replace(sentence=i, sentence_scores=s) for r, i, s in zip(results, whole.ids, whole.scores, strict=True)
        ]
    clock["encoder"] = clock.get("encoder", 0.0) + encoded - started
    clock["search"] = clock.get("search", 0.0) + time.perf_counter() - encoded
    return results


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
            if width != model.config.dim:
                raise InputError(
                    f"the key bank {self.keys!r} has vectors of width {width}, the model {self.model!r} makes "
                    f"width {model.config.dim}. Make the keys with this model: jobs/embed.py --side image."
                )
            if keys < self.config.top_k:
                raise InputError(f"top_k is {self.config.top_k}, but {self.keys!r} has only {keys} images.")
            encoder = DualEncoderText(model, self.config.tokens_per_batch)
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
        lines = rows.column("token_ids").to_pylist()
        line_ids = rows.column("line_id").to_pylist()
        check_vocabulary(lines, line_ids, vocabulary)
        table = vokenize_lines(lines, line_ids, encoder, searcher, self.config, self.seconds)
        tokens = token_count(lines)
        if isinstance(searcher, Searcher):
            self.notes["backend"] = searcher.backend
            self.tallies = searcher.counts._asdict()
        return StepOutput(table, {"lines": len(lines), "tokens": tokens, "vokens": tokens}, no_quarantine())

    def leave_out(self, rows: pa.Table, positions: Sequence[int]) -> pa.Table:
        """The rows with some lines as if they had no tokens: every line of the corpus keeps its row."""
        lines = [None if at in set(positions) else line for at, line in enumerate(rows["token_ids"].to_pylist())]
        place = rows.column_names.index("token_ids")
        return rows.set_column(place, rows.schema.field(place), pa.array(lines, rows.schema.field(place).type))

    def queries(self, rows: pa.Table) -> Float32:
        """What is searched for of a shard's rows, (Q, D): tokens, or sentences where only these are wanted."""
        encoder, _, _ = self._load()
        lines = [line for line in rows["token_ids"].to_pylist() if line]
        sizes = [window_lengths(len(line), self.config.window, self.config.window_policy) for line in lines]
        pieces = [tuple(p) for line, size in zip(lines, sizes, strict=True) for p in cut(line, size)]
        tokens, sentences = encoder.encode(pieces, self.config.level)
        return sentences if self.config.level == "sentence" else np.concatenate(tokens)


def open_bank(keys: str, config: VokenizeConfig) -> OpenBank:
    """How the key bank is searched."""
    return OpenBank(keys, config.backend, config.device, config.approximate)


def token_count(lines: Sequence[Sequence[int] | None]) -> int:
    """Tokens of all lines."""
    return sum(len(line) for line in lines if line)


def check_vocabulary(lines: Sequence[Sequence[int] | None], line_ids: Sequence[int], size: int) -> None:
    """Check that every token id is in the vocabulary.

    Raises:
        InputError: one is not; names line and id.
    """
    for line_id, line in zip(line_ids, lines, strict=True):
        if line and not 0 <= min(line) <= max(line) < size:
            bad = next(token for token in line if not 0 <= token < size)
            raise InputError(
                f"line {line_id} has token id {bad}, but the model's vocabulary has {size} words. The corpus was "
                "tokenized with another tokenizer; run jobs/tokenize_corpus.py with this model's."
            )


def vokenize_lines(
    lines: Sequence[Sequence[int] | None],
    line_ids: Sequence[int],
    encoder: TextEncoder,
    searcher: TopK,
    config: VokenizeConfig,
    seconds: dict[str, float] | None = None,
) -> pa.Table:
    """Lines of token ids to a table of VOKEN_SCHEMA; a line without tokens (None or empty) has null lists."""
    lengths = [window_lengths(len(line or ()), config.window, config.window_policy) for line in lines]
    pieces = [[tuple(p) for p in cut(line or (), size)] for line, size in zip(lines, lengths, strict=True)]
    unique = list(dict.fromkeys(piece for line in pieces for piece in line))
    found = dict(
        zip(unique, assign_vokens(unique, encoder, searcher, config.level, config.top_k, seconds), strict=True)
    )
    columns: list[list[object]] = [[], [], [], [], [], []]
    for line_id, line, size in zip(line_ids, pieces, lengths, strict=True):
        parts = [found[piece] for piece in line]
        row = (
            line_id,
            size or None,
            _flat([p.tokens for p in parts]),
            _flat([p.token_scores for p in parts]),
            _flat([p.sentence for p in parts]),
            _flat([p.sentence_scores for p in parts]),
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    info = {"schema": SCHEMA_VERSION, "top_k": config.top_k, "level": config.level, "keys": searcher.key_count}
    schema = VOKEN_SCHEMA.with_metadata({"vokenray": json.dumps(info, sort_keys=True)})
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, VOKEN_SCHEMA, strict=True)], schema=schema)


def _flat(parts: Sequence[npt.NDArray[np.generic] | None]) -> npt.NDArray[np.generic] | None:
    there = [part.reshape(-1) for part in parts if part is not None]
    return np.concatenate(there) if there else None
