"""Masking: its laws and its shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.mvptr.masking import MaskingConfig, Vocabularies, draw_of, linked_words, mask_pair
from alignment.mvptr.pair_inputs import PairText
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

KNOWN = Vocabularies(4, 100, np.array([7, 100, 101]))
IDS = st.lists(st.integers(5, 99), max_size=12)


@settings(deadline=None)
@given(IDS, IDS, st.lists(st.integers(100, 101), max_size=4), st.integers(0, 2**20))
def test_labels_are_what_was_there_and_all_else_is_kept(
    tokens: list[int], tags: list[int], phrases: list[int], sample: int
) -> None:
    text = PairText(tokens, list(range(len(tokens))), [], phrases, None)
    before = (list(tokens), list(tags), list(phrases))
    found = mask_pair(text, tags, [], KNOWN, MaskingConfig(), draw_of(SampleKey(0, 0), sample))
    assert before == (tokens, tags, phrases)
    for read, labels, own in ((found.tokens, found.token_labels, tokens), (found.tags, found.tag_labels, tags)):
        assert all(label in (-1, one) for label, one in zip(labels, own, strict=True))
        assert all(label >= 0 or one == there for label, one, there in zip(labels, read, own, strict=True))
    assert len(found.phrases) == len(phrases)
    again = mask_pair(text, tags, [], KNOWN, MaskingConfig(), draw_of(SampleKey(0, 0), sample))
    assert again == found


@settings(deadline=None)
@given(IDS, IDS, st.integers(0, 2**20))
def test_an_answer_is_masked_as_words_are_and_changes_nothing_else(
    tokens: list[int], answer: list[int], sample: int
) -> None:
    text = PairText(tokens, list(range(len(tokens))), [], [100], None)
    drawn = [draw_of(SampleKey(0, 0), sample) for _ in range(2)]
    plain = mask_pair(text, [50, 60], [[0]], KNOWN, MaskingConfig(words=0.4), drawn[0])
    found = mask_pair(text._replace(answer=answer), [50, 60], [[0]], KNOWN, MaskingConfig(words=0.4), drawn[1])
    assert found[:5] == plain[:5] and plain[5:] == (None, None)
    assert found.answer is not None and found.answer_labels is not None
    for read, label, own in zip(found.answer, found.answer_labels, answer, strict=True):
        assert label in (-1, own) and (label >= 0 or read == own)


def test_shares_are_the_published_ones() -> None:
    tokens = [50] * 40_000
    text = PairText(tokens, [0] * len(tokens), [], [100] * 40_000, None)
    found = mask_pair(text, [], [], KNOWN, MaskingConfig(), np.random.default_rng(0))
    chosen = np.array(found.token_labels) >= 0
    read = np.array(found.tokens)[chosen]
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert (read == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert (read == 50).mean() == pytest.approx(0.1, abs=0.02)
    phrases = np.array(found.phrases)
    assert (phrases == 4).mean() == pytest.approx(0.15 * 0.8, abs=0.01)
    assert np.isin(phrases, [7, 101]).mean() == pytest.approx(0.15 * 0.1 * 2 / 3, abs=0.003)


@settings(deadline=None)
@given(st.integers(0, 2**20))
def test_a_phrase_does_not_give_a_predicted_word_away(sample: int) -> None:
    text = PairText([10, 11, 12], [0, 1, 2], [], [100, 101], None)
    config = MaskingConfig(words=0.5, phrases=0.0)
    found = mask_pair(text, [], [[0], [1, 2]], KNOWN, config, draw_of(SampleKey(1, 0), sample))
    predicted = [label >= 0 for label in found.token_labels]
    assert found.phrases == [4 if predicted[0] else 100, 4 if any(predicted[1:]) else 101]


@pytest.mark.parametrize(
    ("phrase", "words", "found"),
    [
        (["dog", "ride", "wave"], ["two", "dogs", "riding", "waves"], [1, 2, 3]),
        (["dog"], ["do", "the", "cat"], []),
        (["ride on top of"], ["a", "top"], [1]),
        (["he"], ["he", "held"], [0]),
    ],
)
def test_words_are_found_by_their_beginnings(phrase: list[str], words: list[str], found: list[int]) -> None:
    assert linked_words(phrase, words) == found


def test_shares_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(InputError, match="at most 1 together"):
        MaskingConfig(masked=0.95, random=0.1)
    with pytest.raises(InputError, match="from 0 to 1"):
        MaskingConfig(words=1.5)
