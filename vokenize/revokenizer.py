"""Vokens moved from the tokens of one tokenizer to those of another, line by line, without a model or a key bank.

Two steps, since two kinds of shards are made: `Retokenize` makes the new token shard of an old one, `MoveVokens` the
voken shard that belongs to it. A line without vokens gets no tokens either, so that tokens and vokens stay one to one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vokenize.alignment import Alignment, Int64, Spans, align_lines
from vokenize.list_columns import counts_of, list_column, values_of
from vokenize.original_alignment import align_greedily, byte_level_spans, byte_of_letter, bytes_of, fix_length
from vokenize.tokens import TOKEN_SCHEMA, load_tokenizer, tokenize
from vokenize.voken_runs import read_both
from vokenize.vokenizer import VOKEN_SCHEMA
from xmatch.data import files
from xmatch.data.steps import Shard, StepOutput, no_quarantine
from xmatch.errors import InputError

AlignmentRule = Literal["overlap", "original"]
SPAN_COLUMNS = ("token_ids", "starts", "ends")
VOKEN_COLUMNS = [name for name in VOKEN_SCHEMA.names if name != "line_id"]
NEW = "new_"
"""Before the names of the new tokens' columns where old and new lie in one table."""


class ReadVokened:
    """Reads a token shard with its vokens: the columns of both.

    Args:
        vokens: folder of the voken run.
        info: what every voken shard must say of itself.
    """

    def __init__(self, vokens: str, info: Mapping[str, Any]) -> None:
        self.vokens, self.info = vokens, dict(info)

    def __call__(self, shard: Shard) -> pa.Table:
        """All rows of the shard.

        Raises:
            InputError: a file is missing or broken, or the vokens do not fit the tokens.
        """
        tokens, vokens = read_both(shard, self.vokens, self.info)
        return beside(tokens, vokens.select(VOKEN_COLUMNS))


class ReadMoves(ReadVokened):
    """Reads the same with the new tokens beside them.

    Args:
        vokens: folder of the voken run.
        tokens: folder of the new token run.
        info: what every voken shard must say of itself.
    """

    def __init__(self, vokens: str, tokens: str, info: Mapping[str, Any]) -> None:
        super().__init__(vokens, info)
        self.tokens = tokens

    def __call__(self, shard: Shard) -> pa.Table:
        """All rows of the shard."""
        path = files.join(self.tokens, "shards", f"{shard.id}.parquet")
        return with_new_tokens(super().__call__(shard), files.read_parquet(path))


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of two tables as one."""
    return pa.table([*left.columns, *right.columns], names=[*left.column_names, *right.column_names])


def with_new_tokens(old: pa.Table, new: pa.Table) -> pa.Table:
    """Old tokens and vokens with the columns of new tokens beside them, under names of their own."""
    return beside(old, new.select(SPAN_COLUMNS).rename_columns([f"{NEW}{n}" for n in SPAN_COLUMNS]))


class Retokenize:
    """A step: a token shard to that of another tokenizer, the same lines; lines without old tokens stay without.

    Args:
        tokenizer: folder or hub name.
    """

    def __init__(self, tokenizer: str) -> None:
        self.name = tokenizer
        self.seconds: dict[str, float] = {}
        self._tokenizer: Any = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Tokens of one shard."""
        self._tokenizer = self._tokenizer or load_tokenizer(self.name)
        started = time.perf_counter()
        table = tokenize(self._tokenizer, rows.column("line_id").to_pylist(), rows.column("text").to_pylist())
        there = counts_of(table.column("token_ids"))
        table = without_tokens(table, counts_of(rows.column("token_ids")) == 0)
        kept = counts_of(table.column("token_ids"))
        counts = {
            "lines": len(table),
            "tokens": int(kept.sum()),
            "empty_lines": int((kept == 0).sum()),
            "tokens_without_vokens": int((there - kept).sum()),
        }
        self.seconds["tokenizer"] = self.seconds.get("tokenizer", 0.0) + time.perf_counter() - started
        return StepOutput(table, counts, no_quarantine())


def without_tokens(table: pa.Table, lines: npt.NDArray[np.bool_]) -> pa.Table:
    """A table of TOKEN_SCHEMA whose lists are null in some lines, bool of shape (rows,)."""
    if not lines.any():
        return table
    columns = [
        pc.if_else(pa.array(lines), pa.scalar(None, f.type), table.column(f.name))
        if pa.types.is_list(f.type)
        else table.column(f.name)
        for f in TOKEN_SCHEMA
    ]
    return pa.table(columns, schema=TOKEN_SCHEMA)


class MoveVokens:
    """A step: old tokens, their vokens and new tokens to the vokens of the new tokens.

    Args:
        info: what the voken shards say of themselves; the new ones say the same.
        rule: `overlap`: by most shared characters. `original`: Vokenization's greedy walk.
        tokenizer: of the new tokens; only for `original`.
    """

    def __init__(self, info: Mapping[str, Any], rule: AlignmentRule = "overlap", tokenizer: str = "") -> None:
        self.info, self.rule, self.name = dict(info), rule, tokenizer
        self.seconds: dict[str, float] = {}
        self._original: OriginalRule | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vokens of one shard, a row for every line of it.

        Raises:
            InputError: the lengths of pieces do not sum to the tokens; names the line.
        """
        started = time.perf_counter()
        aligned = self._align(rows)
        table = move(rows, aligned.rows, self.info)
        tokens, old = len(aligned.rows), int(counts_of(rows.column("token_ids")).sum())
        counts = {
            "lines": len(rows),
            "tokens": tokens,
            "vokens": tokens,
            "old_tokens": old,
            "old_tokens_unused": old - len(np.unique(aligned.rows)),
            "tokens_beside_all_old": int((~aligned.overlaps).sum()),
        }
        self.seconds["alignment"] = self.seconds.get("alignment", 0.0) + time.perf_counter() - started
        return StepOutput(table, counts, no_quarantine())

    def _align(self, rows: pa.Table) -> Alignment:
        if self.rule == "original":
            self._original = self._original or OriginalRule(load_tokenizer(self.name))
            return self._original(rows)
        old, new = spans_of(rows, ""), spans_of(rows, NEW)
        return align_lines(old, counts_of(rows.column("token_ids")), new, counts_of(rows.column(f"{NEW}token_ids")))


def spans_of(rows: pa.Table, prefix: str) -> Spans:
    """Character spans of all tokens of a table, old ("") or new (NEW)."""
    starts, ends = (values_of(rows.column(f"{prefix}{name}")).astype(np.int64) for name in ("starts", "ends"))
    return Spans(starts, ends)


class OriginalRule:
    """Vokenization's alignment of a shard, line by line.

    Args:
        tokenizer: of the new tokens, a byte-level one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.table = tokenizer, byte_of_letter()

    def __call__(self, rows: pa.Table) -> Alignment:
        """Alignment of all new tokens; rows count the old tokens of the whole shard.

        Raises:
            InputError: the tokenizer is no byte-level one, or its tokens do not spell the line.
        """
        chosen: list[int] = []
        overlaps: list[bool] = []
        first = 0
        columns = ["line_id", "text", "starts", "ends", f"{NEW}token_ids"]
        for row in rows.select(columns).to_pylist():
            old = list(zip(row["starts"] or (), row["ends"] or (), strict=True))
            if row[f"{NEW}token_ids"]:
                spans, lead = self._spans(row[f"{NEW}token_ids"], row["text"], row["line_id"])
                old = [(start + lead, end + lead) for start, end in old]
                found = align_greedily(old, spans)
                overlaps += [
                    min(old[i][1], span[1]) > max(old[i][0], span[0]) for i, span in zip(found, spans, strict=True)
                ]
                chosen += [first + i for i in found]
            first += len(old)
        return Alignment(np.array(chosen, np.int64), np.array(overlaps, bool))

    def _spans(self, ids: list[int], text: str, line_id: int) -> tuple[list[tuple[int, int]], int]:
        """Spans in the text that the tokens spell, and how many spaces it begins with that the line does not."""
        spelt = b"".join(bytes_of(self.tokenizer.convert_ids_to_tokens(ids), self.table)).decode("utf-8", "replace")
        lead = len(spelt) - len(text)
        if lead not in (0, 1) or spelt != " " * lead + text:
            raise InputError(
                f"line {line_id} reads {text[:40]!r}, but the new tokens spell {spelt[:40]!r}; the original's "
                "alignment needs a tokenizer that keeps every letter. Use --alignment overlap."
            )
        again = self.tokenizer(spelt, add_special_tokens=False, verbose=False)["input_ids"]
        spans = byte_level_spans(bytes_of(self.tokenizer.convert_ids_to_tokens(again), self.table))
        return fix_length(spans, len(ids)), lead


def move(rows: pa.Table, taken: Int64, info: Mapping[str, Any]) -> pa.Table:
    """Vokens of new tokens.

    Args:
        rows: old tokens and vokens with the new tokens beside them.
        taken: (M,) for each new token the old one whose vokens it takes.
        info: of the voken shards.

    Returns:
        A table of VOKEN_SCHEMA. Vokens and scores are those of the old tokens taken, k each; those of pieces are as
        they were, and a piece has as many tokens as take after its old ones, which may be none.
    """
    old_counts, new_counts = counts_of(rows.column("token_ids")), counts_of(rows.column(f"{NEW}token_ids"))
    columns = {"line_id": rows.column("line_id").combine_chunks()}
    columns["piece_lengths"] = _piece_lengths(rows, taken, old_counts)
    for name in ("vokens", "scores"):
        kind = VOKEN_SCHEMA.field(name).type
        if info["level"] == "sentence":
            columns[name] = pa.nulls(len(rows), kind)
            continue
        k = info["top_k"]
        moved = values_of(rows.column(name)).reshape(-1, k)[taken].reshape(-1)
        columns[name] = list_column(moved, new_counts * k, new_counts == 0, kind)
    for name in ("sentence_vokens", "sentence_scores"):
        columns[name] = rows.column(name).combine_chunks()
    schema = VOKEN_SCHEMA.with_metadata({"vokenray": json.dumps(dict(info), sort_keys=True)})
    return pa.table([columns[name] for name in VOKEN_SCHEMA.names], schema=schema)


def _piece_lengths(rows: pa.Table, taken: Int64, old_counts: Int64) -> pa.Array:
    """How many new tokens each piece has; `taken` of shape (M,) says after which old one each takes."""
    pieces = rows.column("piece_lengths")
    per_line, lengths = counts_of(pieces), values_of(pieces).astype(np.int64)
    line = np.repeat(np.arange(len(rows)), per_line)
    covered = np.bincount(line, weights=lengths, minlength=len(rows)).astype(np.int64)
    wrong = np.flatnonzero(covered != old_counts)
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"line {rows.column('line_id')[at].as_py()}: its pieces have {covered[at]} tokens in all, the line has "
            f"{old_counts[at]}. The voken shard is of other tokens; make it again."
        )
    piece_of = np.repeat(np.arange(len(lengths)), lengths)
    moved = np.bincount(piece_of[taken], minlength=len(lengths))
    nulls = np.asarray(pc.is_null(pieces).to_numpy(), bool)
    return list_column(moved, per_line, nulls, VOKEN_SCHEMA.field("piece_lengths").type)


class Revokenize:
    """Both steps in one, for measuring how long they take: a token shard with its vokens to the new vokens."""

    def __init__(self, first: Retokenize, second: MoveVokens) -> None:
        self.first, self.second = first, second

    @property
    def seconds(self) -> dict[str, float]:
        """Of both."""
        return {**self.first.seconds, **self.second.seconds}

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """New vokens of one shard, or of some of its rows."""
        return self.second(shard_id, with_new_tokens(rows, self.first(shard_id, rows).table))
