"""One pair of text and image as the tensors that MVPTR reads (golden `mvptr_tensorize.json`).

Text side: [CLS] tokens phrases [SEP], and behind a question that is pre-trained on its answer and [SEP]. Image side:
[CLS] tags [SEP], then regions. Both are padded with zeros.
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
    answer: Sequence[int] | None = None,
) -> Inputs:
    """The tensors of one pair, without a batch's dimension; S text, Q phrases, T tags, R regions, C numbers a region.

    Tokens are cut to S - 2, with an answer both to S - 3 by `cut_pair`. Phrases take the places behind the tokens, Q
    and those that tokens and answer leave free; the rest is cut. Tags are cut to T - 2, regions to R.

    Args:
        tokens: ids of the text's tokens, without special tokens.
        phrases: ids of its phrases.
        tags: ids of the tokens of the object tags.
        features: (K, C), a row a region.
        lengths: how many places each part has.
        cls: id of [CLS].
        sep: id of [SEP].
        answer: ids of the answer's tokens; none: the text is no question.

    Returns:
        int64 input_ids_a, attention_mask_a and token_type_ids_a of (S + Q), types 1 at the answer alone; input_ids_b
        and token_type_ids_b of (T), types 1 where there is something; attention_mask_b of (T + R); float32 img_feats
        of (R, C).
    """
    kept, behind = list(tokens[: lengths.text - 2]), []
    if answer is not None:
        kept, cut = cut_pair(tokens, answer, lengths.text - 3)
        behind = [*cut, sep]
    kept += phrases[: lengths.text_stream - 2 - len(kept) - len(behind)]
    ids_a = [cls, *kept, sep, *behind]
    types_a = torch.zeros(lengths.text_stream, dtype=torch.int64)
    types_a[len(kept) + 2 : len(ids_a) - 1] = 1
    ids_b = [cls, *tags[: lengths.tags - 2], sep]
    regions = torch.zeros(lengths.regions, features.shape[1])
    count = min(len(features), lengths.regions)
    regions[:count] = torch.from_numpy(np.array(features[:count], np.float32))
    mask_b = torch.cat([_ones(len(ids_b), lengths.tags), _ones(count, lengths.regions)])
    return Inputs(
        _padded(ids_a, lengths.text_stream),
        _ones(len(ids_a), lengths.text_stream),
        types_a,
        _padded(ids_b, lengths.tags),
        mask_b,
        _ones(len(ids_b), lengths.tags),
        regions,
    )


def cut_pair(tokens: Sequence[int], answer: Sequence[int], places: int) -> tuple[list[int], list[int]]:
    """A question and its answer cut to so many places together: always the longer, of equal ones the answer."""
    kept, cut = len(tokens), len(answer)
    while kept + cut > places:
        kept, cut = (kept - 1, cut) if kept > cut else (kept, cut - 1)
    return list(tokens[:kept]), list(answer[:cut])


def _padded(ids: Sequence[int], length: int) -> torch.Tensor:
    """Ids with zeros behind them, of shape (length,)."""
    return torch.tensor([*ids, *[0] * (length - len(ids))], dtype=torch.int64)


def _ones(count: int, length: int) -> torch.Tensor:
    """Ones, and zeros behind them, of shape (length,)."""
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
