"""Writing the caption of an image from its regions: a loss on the side that only training needs (VSRN, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from xmatch.models.context.recurrent import run_over_members


class AdditiveAttention(nn.Module):
    """Weights of encoded regions for one state of the writer: softmax of w^T tanh(W [region; state])."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1, bias=False)

    def forward(self, encoded: torch.Tensor, mask: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Regions (B, K, H), which are real (B, K), and a state (B, H) to the attended region (B, H)."""
        both = torch.cat([encoded, state[:, None].expand_as(encoded)], dim=-1)
        scores = self.linear2(torch.tanh(self.linear1(both)))[..., 0]
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.einsum("bk,bkh->bh", weights, encoded)


class CaptionGenerator(nn.Module):
    """A GRU reads the regions, another writes the caption with its eyes on them (golden `vsrn.json`, caption_model).

    Args:
        dim: width of the regions, D.
        words: of the vocabulary.
        hidden: width of both networks.
        word_dim: width of a word's embedding.
        dropout: on what either network reads.
    """

    def __init__(self, dim: int, words: int, *, hidden: int, word_dim: int, dropout: float) -> None:
        super().__init__()
        self.read_in = nn.Linear(dim, hidden)
        self.reader = nn.GRU(hidden, hidden, batch_first=True)
        self.embed = nn.Embedding(words, word_dim)
        self.attention = AdditiveAttention(hidden)
        self.writer = nn.GRUCell(word_dim + hidden, hidden)
        self.out = nn.Linear(hidden, words)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.read_in, self.out):
            nn.init.xavier_normal_(linear.weight)

    def log_probabilities(self, regions: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of each next word while the words so far are the caption's own.

        Args:
            regions: (B, K, D), what reasoning made of an image.
            mask: (B, K) bool, real regions.
            ids: (B, L) words, the start first.

        Returns:
            (B, L, words): at place t, of word t + 1.
        """
        states, _ = run_over_members(self.reader, self.dropout(self.read_in(regions)), mask)
        last = mask.sum(1).clamp_min(1) - 1
        state = states[torch.arange(len(states), device=states.device), last]
        real = torch.arange(mask.shape[1], device=mask.device)[None, :] <= last[:, None]  # states stand in front
        written, words = [], self.embed(ids)
        for place in range(ids.shape[1]):
            seen = torch.cat([words[:, place], self.attention(states, real, state)], dim=-1)
            state = self.writer(self.dropout(seen), state)
            written.append(state)
        return F.log_softmax(self.out(torch.stack(written, dim=1)).float(), dim=-1)

    def forward(
        self,
        regions: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        word_mask: torch.Tensor,
        *,
        with_padding: bool = False,
    ) -> torch.Tensor:
        """How unlikely the captions are: the sum over a caption's words of their negative log-probabilities.

        Args:
            regions: (B, K, D).
            mask: (B, K) bool.
            ids: (B, L) words, from the start to the end, then padding.
            word_mask: (B, L), 1 for words.
            with_padding: count the first padding behind the end too, as VSRN does; captions that fill L have none.

        Returns:
            (B,).
        """
        counted = word_mask.bool()
        if with_padding:
            counted = torch.cat([counted[:, :1], counted[:, :-1]], dim=1)
        found = self.log_probabilities(regions, mask, ids[:, :-1])
        chances = found.gather(-1, ids[:, 1:, None])[..., 0]
        return -(chances * counted[:, 1:].to(chances.dtype)).sum(1)
