"""Word embeddings and a GRU, the text towers of VSE++ and of VSE-infinity's BiGRU models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class RecurrentOutput(NamedTuple):
    """Features at every position, under the name that transformers gives them."""

    last_hidden_state: torch.Tensor


class WordEmbeddings(nn.Module):
    """Embeddings of words, with nothing behind them.

    Args:
        vocab_size: words.
        word_dim: width of a word's embedding; uniform in -0.1 … 0.1 at the start.
    """

    def __init__(self, vocab_size: int, word_dim: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=word_dim, model_type="words")
        self.embed = nn.Embedding(vocab_size, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> RecurrentOutput:
        """(B, L) ids to (B, L, word_dim)."""
        return RecurrentOutput(self.embed(input_ids))


class RecurrentEncoder(nn.Module):
    """Embedding, then one GRU layer; with both directions, their outputs are averaged.

    State-dict keys `embed` and `rnn` are the originals' (golden `vse_bigru_text_encoder.json`).

    Args:
        vocab_size: words.
        word_dim: width of a word's embedding; uniform in -0.1 … 0.1 at the start.
        hidden: width of the GRU and of the output.
        both_ways: read the words backwards too.
    """

    def __init__(self, vocab_size: int, word_dim: int, hidden: int, *, both_ways: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=hidden, model_type="recurrent")
        self.embed = nn.Embedding(vocab_size, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.rnn = nn.GRU(word_dim, hidden, 1, batch_first=True, bidirectional=both_ways)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> RecurrentOutput:
        """(B, L) ids and mask, 1 for real words, which come first, to (B, L, hidden); zeros on padding."""
        lengths = attention_mask.sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(self.embed(input_ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        if self.rnn.bidirectional:
            forward, backward = states.chunk(2, dim=-1)
            states = (forward + backward) / 2
        return RecurrentOutput(states)
