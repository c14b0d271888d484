"""Captions to token ids, as each kind of text tower reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from xmatch.data.words import split_words
from xmatch.models.towers.text import TextTowerConfig


class TokenBatch(NamedTuple):
    """Padded captions: ids (B, L) int64, and a mask (B, L) int64 that is 1 where a position counts."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class CaptionTokens(NamedTuple):
    """One caption before padding: its ids, and the word each belongs to (None: a special token)."""

    ids: list[int]
    words: list[int | None]


def caption_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], config: TextTowerConfig
) -> list[CaptionTokens]:
    """Token ids of captions, special tokens included, at most `config.max_len`."""
    split = [split_words(text) for text in texts] if config.is_recurrent else list(texts)
    encoded = tokenizer(
        split, truncation=True, max_length=config.max_len, is_split_into_words=config.is_recurrent, padding=False
    )
    rows: Sequence[list[int]] = encoded["input_ids"]
    words = [encoded.word_ids(i) if encoded.is_fast else list(range(len(ids))) for i, ids in enumerate(rows)]
    return [CaptionTokens(list(ids), list(word)) for ids, word in zip(rows, words, strict=True)]


def pad_tokens(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, config: TextTowerConfig
) -> TokenBatch:
    """Ids of captions side by side, padded to the longest, or to `max_len`, where padding counts or does not."""
    longest = max(1, max((len(row) for row in rows), default=1))
    width = longest if config.padding == "longest" else config.max_len
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id or 0), dtype=torch.int64)
    mask = torch.full_like(ids, int(config.padding == "max_length"))
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[place, : len(row)] = 1
    return TokenBatch(ids, mask)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], config: TextTowerConfig) -> TokenBatch:
    """Captions to padded ids."""
    return pad_tokens([row.ids for row in caption_tokens(tokenizer, texts, config)], tokenizer, config)
