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
from alignment.mvptr.tensorize import cut_pair, plain_ids, stack, tag_text, tensorize

CASES = golden("agree_mvptr/mvptr_tensorize")["cases"]
QUESTIONS = golden("agree_mvptr/mvptr_questions")["cases"]
NAMES = ("input_ids_a", "input_mask_a", "segment_ids_a", "input_ids_b", "input_mask_b", "segment_ids_b")


def made(tokens: int, phrases: int, tags: int, regions: int, lengths: Lengths, answer: int | None = None) -> Inputs:
    """By the rule of the golden files."""
    features = np.arange(3 * regions, dtype=np.float32).reshape(regions, 3)
    ids = ([1000 + i for i in range(tokens)], [30522 + i for i in range(phrases)], [2000 + i for i in range(tags)])
    words = None if answer is None else [3000 + i for i in range(answer)]
    return tensorize(*ids, features, lengths, cls=101, sep=102, answer=words)


def lengths_of(case: dict) -> Lengths:
    names = ("max_seq_length", "max_phrases", "max_tag_length", "max_img_seq_length")
    return Lengths(**dict(zip(("text", "phrases", "tags", "regions"), (case[name] for name in names), strict=True)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['n_text_tokens']}-{case['n_phrases']}")
def test_tensors_are_those_of_the_original(case: dict) -> None:
    counts = [case[name] for name in ("n_text_tokens", "n_phrases", "n_tag_tokens", "n_regions")]
    found = made(*counts, lengths_of(case))
    for name, tensor in zip(NAMES, found):
        assert tensor.dtype == torch.int64 and tensor.tolist() == case[name], name
    assert list(found.img_feats.shape) == case["img_feat_shape"]
    assert found.img_feats.sum(1).tolist() == case["img_feat_row_sums"]


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: f"{case['n_text_tokens']}-{case['n_answer_tokens']}")
def test_tensors_of_questions_are_those_of_the_original(case: dict) -> None:
    counts = [case[name] for name in ("n_text_tokens", "n_phrases", "n_tag_tokens", "n_regions")]
    found = made(*counts, lengths_of(case), answer=case["n_answer_tokens"])
    for name, tensor in zip(NAMES[:5], found):
        assert tensor.tolist() == case[name], name
    start, end = case["phrase_index"]
    assert found.input_ids_a[start:end].tolist() == [30522 + i for i in range(end - start)]


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


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9))
def test_an_answer_is_a_second_segment_behind_the_phrases(tokens: int, answer: int, phrases: int) -> None:
    """[CLS] question phrases [SEP] answer [SEP], the last of segment 0; question and answer give way to each other."""
    lengths, given_ids = Lengths(text=8, phrases=3, tags=4, regions=3), [list(range(n, n + 9)) for n in (10, 20, 30)]
    own = given_ids[0][:tokens], given_ids[1][:phrases], given_ids[2][:answer]
    found = tensorize(own[0], own[1], [], np.zeros((0, 3), np.float32), lengths, cls=1, sep=2, answer=own[2])
    kept, cut = cut_pair(own[0], own[2], 5)
    concepts = own[1][: 8 - len(kept) - len(cut)]
    expected = [1, *kept, *concepts, 2, *cut, 2]
    there = int(found.attention_mask_a.sum())
    assert found.input_ids_a.tolist() == expected + [0] * (11 - len(expected))
    assert found.attention_mask_a.tolist() == [1] * there + [0] * (11 - there) and there == len(expected)
    start = there - 1 - len(cut)
    assert found.token_type_ids_a.tolist() == [int(start <= place < there - 1) for place in range(11)]
    assert len(kept) + len(cut) == min(5, tokens + answer)
    assert len(cut) == answer or len(cut) >= len(kept) - 1
    assert len(kept) == tokens or len(kept) >= len(cut)


def test_of_equally_long_ones_the_answer_is_cut() -> None:
    assert cut_pair([1, 2, 3], [4, 5, 6], 5) == ([1, 2, 3], [4, 5])
    assert cut_pair([1, 2, 3, 7], [4, 5], 3) == ([1, 2], [4])


def test_pairs_are_stacked_and_texts_are_ids() -> None:
    batch = stack([made(3, 1, 2, 2, Lengths()), made(1, 0, 0, 0, Lengths())])
    assert batch.img_feats.shape == (2, 50, 3) and batch.input_ids_a.shape == (2, 55)
    tokenizer = tiny_vocabulary()
    assert tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "The cat")) == ["the", "cat"]
    assert plain_ids(tokenizer, "") == []


def test_tags_keep_the_detectors_order() -> None:
    assert tag_text(["dog", "cat", "dog"]) == "dog cat dog"
    assert tag_text(["dog", "cat", "dog"], unique=True) == "dog cat"
