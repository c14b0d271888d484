"""One pair of text and image as the tensors that MVPTR reads (golden `mvptr_tensorize.json`).

Text side: [CLS] tokens phrases [SEP]. Image side: [CLS] tags [SEP], then regions. Both are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from alignment.mvptr.config import Lengths
from alignment.mvptr.model import Inputs


def tensorize(
    tokens: Sequence[int],
    phrases: Sequence[int],
    tags: Sequence[int],
    features: npt.NDArray[np.float32],
    lengths: Lengths,
    *,
    cls: int,
    sep: int,
) -> Inputs:
    """The tensors of one pair, without a batch's dimension; S text, Q phrases, T tags, R regions, C numbers a region.

    Tokens are cut to S - 2. Phrases take the places behind them, Q and those that the tokens leave free; the rest is
    cut. Tags are cut to T - 2, regions to R.

    Args:
        tokens: ids of the text's tokens, without special tokens.
        phrases: ids of its phrases.
        tags: ids of the tokens of the object tags.
        features: (K, C), a row a region.
        lengths: how many places each part has.
        cls: id of [CLS].
        sep: id of [SEP].

    Returns:
        int64 input_ids_a, attention_mask_a and token_type_ids_a of (S + Q), all types 0; input_ids_b and
        token_type_ids_b of (T), types 1 where there is something; attention_mask_b of (T + R); float32 img_feats of
        (R, C).
    """
    kept = list(tokens[: lengths.text - 2])
    kept += phrases[: lengths.text_stream - 2 - len(kept)]
    ids_a = [cls, *kept, sep]
    ids_b = [cls, *tags[: lengths.tags - 2], sep]
    regions = torch.zeros(lengths.regions, features.shape[1])
    count = min(len(features), lengths.regions)
    regions[:count] = torch.from_numpy(np.array(features[:count], np.float32))
    mask_b = torch.cat([_ones(len(ids_b), lengths.tags), _ones(count, lengths.regions)])
    return Inputs(
        _padded(ids_a, lengths.text_stream),
        _ones(len(ids_a), lengths.text_stream),
        torch.zeros(lengths.text_stream, dtype=torch.int64),
        _padded(ids_b, lengths.tags),
        mask_b,
        _ones(len(ids_b), lengths.tags),
        regions,
    )


def _padded(ids: Sequence[int], length: int) -> torch.Tensor:
    return torch.tensor([*ids, *[0] * (length - len(ids))], dtype=torch.int64)


def _ones(count: int, length: int) -> torch.Tensor:
    return (torch.arange(length) < count).to(torch.int64)


def stack(examples: Iterable[Inputs]) -> Inputs:
    """Pairs as one batch."""
    return Inputs(*(torch.stack(parts) for parts in zip(*examples, strict=True)))


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text's tokens, without special tokens and uncut."""
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def tag_text(tags: Iterable[str], *, unique: bool = False) -> str:
    """Object tags as one text, in the detector's order; regions without a name say nothing.

    Args:
        tags: of the regions.
        unique: keep the first of equal ones alone. The original does for Flickr30k, VQA, SNLI-VE and referring
            expressions, through a set whose order differs from process to process.
    """
    named = [tag for tag in tags if tag]
    return " ".join(dict.fromkeys(named) if unique else named)
