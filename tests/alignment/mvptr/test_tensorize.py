"""Tensors of pairs against the original's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import golden, tiny_vocabulary

from alignment.mvptr.config import Lengths
from alignment.mvptr.model import Inputs
from alignment.mvptr.tensorize import plain_ids, stack, tag_text, tensorize

CASES = golden("agree_mvptr/mvptr_tensorize")["cases"]
NAMES = ("input_ids_a", "input_mask_a", "segment_ids_a", "input_ids_b", "input_mask_b", "segment_ids_b")


def made(tokens: int, phrases: int, tags: int, regions: int, lengths: Lengths) -> Inputs:
    """By the rule of the golden file."""
    features = np.arange(3 * regions, dtype=np.float32).reshape(regions, 3)
    ids = ([1000 + i for i in range(tokens)], [30522 + i for i in range(phrases)], [2000 + i for i in range(tags)])
    return tensorize(*ids, features, lengths, cls=101, sep=102)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['n_text_tokens']}-{case['n_phrases']}")
def test_tensors_are_those_of_the_original(case: dict) -> None:
    lengths = Lengths(
        text=case["max_seq_length"],
        phrases=case["max_phrases"],
        tags=case["max_tag_length"],
        regions=case["max_img_seq_length"],
    )
    counts = [case[name] for name in ("n_text_tokens", "n_phrases", "n_tag_tokens", "n_regions")]
    found = made(*counts, lengths)
    for name, tensor in zip(NAMES, found):
        assert tensor.dtype == torch.int64 and tensor.tolist() == case[name], name
    assert list(found.img_feats.shape) == case["img_feat_shape"]
    assert found.img_feats.sum(1).tolist() == case["img_feat_row_sums"]


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(2, 6), st.integers(0, 4), st.integers(2, 6))
def test_shapes_are_fixed_and_masks_count_what_is_there(counts: list[int], text: int, phrases: int, tags: int) -> None:
    lengths = Lengths(text=text, phrases=phrases, tags=tags, regions=3)
    found = made(*counts, lengths)
    assert [tuple(part.shape) for part in found] == [
        *[(text + phrases,)] * 3, (tags,), (tags + 3,), (tags,), (3, 3)]  # fmt: skip
    tokens = min(counts[0], text - 2)
    assert int(found.attention_mask_a.sum()) == 2 + tokens + min(counts[1], text + phrases - 2 - tokens)
    assert int(found.attention_mask_b.sum()) == 2 + min(counts[2], tags - 2) + min(counts[3], 3)
    assert found.input_ids_b.tolist()[: 2 + min(counts[2], tags - 2)][-1] == 102
    assert bool((found.input_ids_a[found.attention_mask_a == 0] == 0).all())


def test_pairs_are_stacked_and_texts_are_ids() -> None:
    batch = stack([made(3, 1, 2, 2, Lengths()), made(1, 0, 0, 0, Lengths())])
    assert batch.img_feats.shape == (2, 50, 3) and batch.input_ids_a.shape == (2, 55)
    tokenizer = tiny_vocabulary()
    assert tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "The cat")) == ["the", "cat"]
    assert plain_ids(tokenizer, "") == []


def test_tags_keep_the_detectors_order() -> None:
    assert tag_text(["dog", "cat", "dog"]) == "dog cat dog"
    assert tag_text(["dog", "cat", "dog"], unique=True) == "dog cat"
