"""Stacked cross attention (SCAN, Lee et al. 2018): a score that looks at every region and every word of a pair.

Nothing of it can be put into an index: it is the yardstick for models whose score is an inner product.

Shapes: N images of K regions, M captions of L words, D width; all vectors of unit length, zeros where padded.

With r a region, w a word and s = <r, w>, the direction `t2i` has every word look at the regions:

    a_rw   s, put through `raw_norm`: over the words of each region
    b_rw   softmax over the regions of `softmax_factor` a_rw
    x_w    sum over the regions of b_rw r
    c_w    cosine of w and x_w
    score  `aggregation` of c_w over the words

`i2t` has every region look at the words: the same with regions and words exchanged. x_w itself is never made:
<w, x_w> is the sum of b_rw s, and |x_w|^2 is b G b with the inner products G of the regions among themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from xmatch.errors import InputError
from xmatch.evaluation.similarities import Block

RawNorm = Literal["softmax", "l2norm", "clipped_l2norm", "l1norm", "clipped_l1norm", "clipped", "no_norm"]
EPSILON = 1e-8
LEAK = 0.1
"""Slope of the clipping below zero."""
BLOCK_PRODUCTS = 1 << 22
"""Inner products of regions and words that are held at a time: 16 MiB, and a few times that on the way."""


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    """How a pair is scored; the defaults are SCAN's text-to-image model."""

    direction: Literal["t2i", "i2t"] = "t2i"
    """Who looks: words at regions (`t2i`), or regions at words (`i2t`)."""
    softmax_factor: float = 9.0
    """Factor within the softmax; SCAN has 9 for t2i and 4 for i2t."""
    raw_norm: RawNorm = "clipped_l2norm"
    """What is done to the inner products before; `clipped` is a leaky ReLU of slope 0.1."""
    aggregation: Literal["lse", "mean", "max", "sum"] = "lse"
    """How the cosines make a score; `lse` is log(sum(exp(f c))) / f."""
    lse_factor: float = 6.0
    """f; SCAN has 6 for t2i, and 5 (Flickr30k) or 20 (COCO) for i2t."""

    def __post_init__(self) -> None:
        """Refuse factors that mean nothing."""
        if self.softmax_factor <= 0 or self.lse_factor <= 0:
            raise InputError(
                f"factors must be greater than 0, got softmax_factor {self.softmax_factor} and lse_factor "
                f"{self.lse_factor}."
            )


class Sets(NamedTuple):
    """Regions of images or words of captions.

    Attributes:
        vectors: (B, K, D) float32.
        mask: (B, K) bool, true where real; at least one of each.
    """

    vectors: torch.Tensor
    mask: torch.Tensor

    def part(self, rows: slice) -> Sets:
        """Some of them, as wide as the largest of these."""
        mask = self.mask[rows]
        width = int(mask.any(0).nonzero().max()) + 1 if len(mask) else 0
        return Sets(self.vectors[rows, :width], mask[:, :width])


def sets_of(vectors: torch.Tensor, lengths: torch.Tensor | None = None) -> Sets:
    """Sets of the first `lengths` (B,) of vectors (B, K, D), or of all of them.

    Raises:
        InputError: a length is not between 1 and K.
    """
    count, width = vectors.shape[:2]
    lengths = torch.full((count,), width) if lengths is None else lengths
    wrong = ((lengths < 1) | (lengths > width)).nonzero().flatten()
    if len(wrong):
        raise InputError(
            f"set {int(wrong[0])} has {int(lengths[wrong[0]])} members, expected 1 to {width}. Give true lengths."
        )
    return Sets(vectors, torch.arange(width) < lengths[:, None])


def cross_attention_scores(images: Sets, texts: Sets, config: CrossAttentionConfig) -> torch.Tensor:
    """Scores (N, M) of all pairs, float32, a block of pairs at a time.

    Args:
        images: N sets of regions.
        texts: M sets of words.
        config: how a pair is scored.
    """
    scores = torch.empty((len(images.mask), len(texts.mask)))
    products = images.mask.shape[1] * texts.mask.shape[1]
    side = max(1, int((BLOCK_PRODUCTS / max(1, products)) ** 0.5))
    for top in range(0, len(images.mask), side):
        rows = slice(top, top + side)
        for left in range(0, len(texts.mask), side):
            columns = slice(left, left + side)
            scores[rows, columns] = _block_scores(images.part(rows), texts.part(columns), config)
    return scores


def _block_scores(images: Sets, texts: Sets, config: CrossAttentionConfig) -> torch.Tensor:
    """Scores (N, M) of one block of pairs."""
    looking, seen = (texts, images) if config.direction == "t2i" else (images, texts)
    products = (seen.vectors.flatten(0, 1) @ looking.vectors.flatten(0, 1).T).view(
        *seen.mask.shape, *looking.mask.shape
    )
    products = products.permute(0, 2, 3, 1)  # (seen, looking, members that look, members that are seen)
    real = looking.mask[None, :, :, None] & seen.mask[:, None, None, :]
    weights = _RAW_NORMS[config.raw_norm](products.masked_fill(~real, 0.0), looking.mask[None, :, :, None])
    weights = (config.softmax_factor * weights).masked_fill(~seen.mask[:, None, None, :], -torch.inf).softmax(-1)
    gram = seen.vectors @ seen.vectors.transpose(1, 2)
    count, others, members, width = weights.shape
    spread = torch.bmm(weights.reshape(count, others * members, width), gram).view_as(weights)
    lengths = (spread * weights).sum(-1).clamp_min(0).sqrt() * looking.vectors.norm(dim=-1)
    cosines = (weights * products).sum(-1) / lengths.clamp_min(EPSILON)
    found = _aggregated(cosines, looking.mask, config)
    return found if config.direction == "t2i" else found.T


def _aggregated(cosines: torch.Tensor, mask: torch.Tensor, config: CrossAttentionConfig) -> torch.Tensor:
    """(A, B, L) cosines of members, of which (B, L) are real, to (A, B)."""
    if config.aggregation == "lse":
        return (config.lse_factor * cosines).masked_fill(~mask, -torch.inf).logsumexp(-1) / config.lse_factor
    if config.aggregation == "max":
        return cosines.masked_fill(~mask, -torch.inf).amax(-1)
    total = cosines.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1) if config.aggregation == "mean" else total


def _softmax(products: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Softmax of products (A, B, L, K) over the L members that look; zero where `mask` (1, B, L, 1) is false."""
    return products.masked_fill(~mask, -torch.inf).softmax(-2).masked_fill(~mask, 0.0)


def _l2norm(products: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Products (A, B, L, K) divided by their L2 norm over the L members that look."""
    lengths: torch.Tensor = torch.linalg.vector_norm(products, dim=-2, keepdim=True)
    return products / (lengths + EPSILON)


def _l1norm(products: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Products (A, B, L, K) divided by their L1 norm over the L members that look."""
    return products / (products.abs().sum(-2, keepdim=True) + EPSILON)


def _clipped(products: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Products (A, B, L, K), `LEAK` of them where they are below zero."""
    found: torch.Tensor = functional.leaky_relu(products, LEAK)
    return found


_RAW_NORMS: dict[RawNorm, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "softmax": _softmax,
    "l2norm": _l2norm,
    "clipped_l2norm": lambda products, mask: _l2norm(_clipped(products, mask), mask),
    "l1norm": _l1norm,
    "clipped_l1norm": lambda products, mask: _l1norm(_clipped(products, mask), mask),
    "clipped": _clipped,
    "no_norm": lambda products, _: products,
}
"""Of (A, B, L, K) inner products, zero where padded, over the members that look, L; and which of these are real."""


@dataclass(frozen=True)
class CrossAttentionSimilarities:
    """Scores of a cross attention as a source that is read by rectangles.

    Attributes:
        images: N sets of regions.
        texts: M sets of words.
        config: how a pair is scored.
    """

    images: Sets
    texts: Sets
    config: CrossAttentionConfig

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.images.mask), len(self.texts.mask)

    def block(self, rows: slice, columns: slice) -> Block:
        """Scores of a rectangle, float32."""
        with torch.inference_mode():
            found: Block = cross_attention_scores(self.images.part(rows), self.texts.part(columns), self.config).numpy()
        return found.astype(np.float32, copy=False)
