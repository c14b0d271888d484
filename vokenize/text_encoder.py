"""Token ids through the text tower of a dual encoder, in batches that are a function of the ids alone.

Shapes: P pieces (encoder windows), T tokens of all pieces end to end, D the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from vokenize.ragged import Int64, ranges, starts_of
from xmatch.models.dual_encoder import DualEncoder

Float32 = npt.NDArray[np.float32]
Precision = Literal["float32", "bfloat16"]
GROUP_TOKENS = 1 << 16
"""Embeddings handed on at a time, at least: enough queries for a search at full speed, and a bound on memory."""


class Encoded(NamedTuple):
    """Some of the pieces, encoded.

    Attributes:
        pieces: (p,) int64, which.
        tokens: (t, D) unit embeddings of their own tokens, piece by piece.
        sentences: (p, D) unit embeddings of the pieces.
    """

    pieces: Int64
    tokens: Float32
    sentences: Float32


class TextEncoder(Protocol):
    """Encodes pieces of token ids, without special tokens."""

    def encode(self, tokens: Int64, lengths: Int64) -> Iterator[Encoded]:
        """All pieces, in groups and in any order, each once.

        Args:
            tokens: (T,) ids of all pieces end to end.
            lengths: (P,) tokens of each, none 0.
        """
        ...


class DualEncoderText:
    """The text tower of a dual encoder, fed with token ids in batches of a padded-token budget.

    Args:
        model: on its device, in eval mode.
        tokens_per_batch: padded tokens in one forward pass, special tokens included.
        precision: number format of the tower's weights and activations; heads and embeddings are float32 in any case.
    """

    def __init__(self, model: DualEncoder, tokens_per_batch: int, precision: Precision = "float32") -> None:
        self.model, self.tokens_per_batch = model, tokens_per_batch
        model.text_tower.to(getattr(torch, precision))
        tokenizer = model.tokenizer
        self.vocabulary = len(tokenizer)
        probe = tokenizer("", add_special_tokens=True)["input_ids"]
        self.prefix, self.suffix = probe[: len(probe) // 2], probe[len(probe) // 2 :]
        self.pad = tokenizer.pad_token_id

    def encode(self, tokens: Int64, lengths: Int64) -> Iterator[Encoded]:
        """Embeddings of pieces, shortest first."""
        order, starts = np.argsort(lengths, kind="stable"), starts_of(lengths)
        began, count = 0, 0
        at_tokens: list[torch.Tensor] = []
        at_pieces: list[torch.Tensor] = []
        for first, last in self._batches(lengths[order]):
            chosen = order[first:last]
            found, whole = self._forward(tokens[ranges(starts[chosen], lengths[chosen])], lengths[chosen])
            at_tokens.append(found)
            at_pieces.append(whole)
            count += len(found)
            if count >= GROUP_TOKENS or last == len(order):
                yield Encoded(order[began:last], _array(at_tokens), _array(at_pieces))
                began, count, at_tokens, at_pieces = last, 0, [], []

    def _batches(self, ascending: Int64) -> Iterator[tuple[int, int]]:
        """First and one past the last piece of each batch."""
        widths = (ascending + len(self.prefix) + len(self.suffix)).tolist()
        first = 0
        for at, width in enumerate(widths):
            if at > first and (at + 1 - first) * width > self.tokens_per_batch:
                yield first, at
                first = at
        if widths:
            yield first, len(widths)

    def _forward(self, tokens: Int64, lengths: Int64) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, D) embeddings of the tokens and (p, D) of the pieces of one batch, on the model's device."""
        count, longest, before = len(lengths), int(lengths[-1]), len(self.prefix)
        width = before + longest + len(self.suffix)
        ids = np.full((count, width), self.pad, np.int64)
        ids[:, :before] = self.prefix
        own = ranges(np.arange(count) * width + before, lengths)
        ids.reshape(-1)[own] = tokens
        ends = before + lengths
        for place, special in enumerate(self.suffix):
            ids[np.arange(count), ends + place] = special
        mask = np.arange(width) < (ends + len(self.suffix))[:, None]
        with torch.inference_mode():
            found, whole = self.model.embed_text_both(self._place(ids), self._place(mask.astype(np.int64)))
            return found.reshape(count * width, -1)[self._place(own)].float(), whole.float()

    def _place(self, array: Int64) -> torch.Tensor:
        """An array of any shape on the model's device."""
        return torch.from_numpy(array).to(self.model.device, non_blocking=True)


def _array(parts: list[torch.Tensor]) -> Float32:
    """Parts of a group, (n, D) each, end to end on the CPU."""
    found: Float32 = torch.cat(parts).cpu().numpy()
    return found
