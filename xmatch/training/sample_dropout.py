"""Dropout whose draws belong to the samples, so that neither the batch nor the number of workers changes them.

Torch draws one long row of numbers for a whole batch: who gets which depends on who else is there, and on which worker.
Here the number at a place is a hash of (salt, sample, coordinates), where every dropout of a forward pass takes a salt
of its own from torch's generator. Seed that alike everywhere, and a sample meets the same masks in a batch of one or of
a thousand, in a part of a cached step, and in the second forward pass of gradient checkpointing, which puts the
generator back (and must be told of `recompute_contexts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

BITS = 31
"""Of a hash: one less than an int32 has, so that a shift to the right brings in zeros."""


class SampleDropout(TorchFunctionMode):
    """Within the block, `F.dropout` and the dropout of attention draw by sample.

    Tensors whose first axis does not count the samples (such as regions of ragged sets in one list) are drawn by place
    and by the first sample.

    Args:
        samples: (B,) numbers of the samples, on the model's device.
    """

    def __init__(self, samples: torch.Tensor) -> None:
        super().__init__()
        self.samples = ((samples ^ (samples >> BITS)) & ((1 << BITS) - 1)).to(torch.int32)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the two functions that drop; leave all others as they are."""
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        """`F.dropout` of (B, ...) by sample."""
        if not training or p == 0.0:
            return input
        factors = self._factors(input, p)
        return input.mul_(factors) if inplace else input * factors

    def _factors(self, rows: torch.Tensor, p: float) -> torch.Tensor:
        """0 with probability p, else 1 / (1 - p), in the shape of `rows` (B, ...)."""
        salt = torch.randint(1 << BITS, (), dtype=torch.int32).to(rows.device)
        keys = self.samples
        if len(keys) != len(rows):
            keys = _mix(torch.arange(len(rows), dtype=torch.int32, device=rows.device)) ^ self.samples[:1]
        hashes = _mix(_mix(keys ^ salt))
        for size in rows.shape[1:]:
            hashes = _mix(hashes[..., None] + torch.arange(size, dtype=torch.int32, device=rows.device))
        kept = hashes >= round(p * (1 << BITS))
        return kept.to(rows.dtype) / (1.0 - p) if p < 1.0 else torch.zeros_like(rows)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Attention over (B, heads, L, E); written out where weights are dropped, as torch would draw them itself."""
        if dropout_p == 0.0:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = scores.softmax(-1).to(value.dtype)
        return (weights * self._factors(weights, dropout_p)) @ value


def recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What `torch.utils.checkpoint` takes as context_fn: the dropout of the first forward pass in the second one."""
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, SampleDropout)]
    return nullcontext(), modes[-1] if modes else nullcontext()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A hash of each int32, of any shape.

    Two multiply-and-shift rounds with the constants of Ettinger's `lowbias32`, cut short.
    """
    low = (1 << BITS) - 1
    x = x & low
    x = x ^ (x >> 16)
    x *= 0x21F0AAAD
    x &= low
    x ^= x >> 15
    x *= 0xD35A2D97 - (1 << 32)
    x &= low
    x ^= x >> 15
    return x
