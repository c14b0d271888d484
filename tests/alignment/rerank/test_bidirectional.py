"""Bidirectional re-ranking: its laws, the original's lists, and candidates without lists of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.rerank import bidirectional
from alignment.rerank.bidirectional import bidirectional_order, rerank_bidirectional, reverse_places
from alignment.rerank.candidates import EMPTY, Lists
from xmatch.errors import InputError

GOLDEN = Path(__file__).parents[2] / "golden" / "agree_mvptr"


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def lists(rows: list[list[int]]) -> Lists:
    found = np.array(rows, np.int64)
    return Lists(found, -np.arange(found.size, dtype=np.float32).reshape(found.shape))


@st.composite
def toy(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Lists of both directions, whole permutations cut short, and k."""
    queries, items = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    depths = draw(st.integers(1, items)), draw(st.integers(1, queries))
    own = np.stack([rng.permutation(items)[: depths[0]] for _ in range(queries)])
    reverse = np.stack([rng.permutation(queries)[: depths[1]] for _ in range(items)])
    return own, reverse, draw(st.integers(1, 8))


def by_the_rule(own: list[int], query: int, reverse: np.ndarray, k: int) -> list[int]:
    """One list, as the rule says it."""
    cut = [one.tolist()[:k] for one in reverse]
    head = own[:k]
    if cut[head[0]][:1] == [query]:
        return own
    places = {c: cut[c].index(query) if query in cut[c] else 10_000 for c in head}
    return sorted(head, key=lambda c: (head.index(c) + places[c]) / 2) + own[k:]


@settings(deadline=None, max_examples=60)
@given(toy())
def test_every_list_is_ordered_by_the_rule(case) -> None:
    own, reverse, k = case
    order = bidirectional_order(own, reverse, k)
    expected = [by_the_rule(one.tolist(), query, reverse, k) for query, one in enumerate(own)]
    assert np.take_along_axis(own, order, 1).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(toy())
def test_lists_that_agree_stay_and_blocks_do_not_matter(case) -> None:
    own, reverse, k = case
    places = reverse_places(own, reverse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bidirectional, "BLOCK_ELEMENTS", 1)
        assert np.array_equal(reverse_places(own, reverse), places)
    order = bidirectional_order(own, reverse, k)
    mutual = places[:, 0] == 0
    assert (order[mutual] == np.arange(own.shape[1])).all()
    assert (np.sort(order, 1) == np.arange(own.shape[1])).all()


@pytest.mark.parametrize("name", ["agree_tbr_eval_40x5", "agree_tbr_eval_30x3_noisy"])
def test_the_originals_lists(name: str) -> None:
    case = golden(name)
    images, texts = (lists(case[f"{side}_predictions"]) for side in ("image", "text"))
    ids = [str(row) for row in range(1000)]
    k = case["top_k"]
    for side, own, other in (("image", images, texts), ("text", texts, images)):
        found = rerank_bidirectional(own, other, ids, k).rows
        assert found.tolist() == case[f"{side}_rerank"]
        assert int((found != own.rows).any(1).sum()) == case[f"n_{side}_lists_changed"]


def test_the_originals_small_lists_with_a_tie() -> None:
    before, case = golden("agree_topk"), golden("agree_tbr_eval_small")
    texts = lists(before["text_predictions"])
    texts = texts._replace(rows=texts.rows - 100)
    images = lists(before["image_predictions"])
    ids = [str(row) for row in range(12)]
    assert (rerank_bidirectional(texts, images, ids, 5).rows + 100).tolist() == case["text_rerank"]
    assert rerank_bidirectional(images, texts, ids, 5).rows.tolist() == case["image_rerank"]


def test_scores_move_with_their_candidates() -> None:
    own = Lists(np.array([[0, 1, 2]]), np.array([[0.9, 0.8, 0.7]], np.float32))
    reverse = lists([[1, 1], [0, 1], [1, 0]])
    found = rerank_bidirectional(own, reverse, list("abc"), 3)
    assert found.rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(found.scores, [[0.8, 0.7, 0.9]])


def test_places_beyond_k_and_empty_places_stay_behind() -> None:
    own = np.array([[0, 1, 2, 3], [1, 0, EMPTY, EMPTY]])
    reverse = np.array([[5, 1], [0, 5], [0, 5], [0, 5]])
    order = bidirectional_order(own, reverse, 2)
    assert np.take_along_axis(own, order, 1).tolist() == [[1, 0, 2, 3], [0, 1, EMPTY, EMPTY]]


def test_candidates_without_a_list_are_counted_and_named() -> None:
    reverse = lists([[0], [EMPTY], [EMPTY], [EMPTY], [EMPTY]])
    own = lists([[0, 1, 2, 3, 4], [1, 2, 0, 3, 4]])
    with pytest.raises(InputError, match=r"3 candidates \('b', 'c', 'd'\) have none") as caught:
        rerank_bidirectional(own, reverse, list("abcde"), 4)
    assert "switch it off" in str(caught.value)
    with pytest.raises(InputError, match=r"1 candidates \('b'\)"):
        rerank_bidirectional(own, reverse, list("abcde"), 1)
    assert rerank_bidirectional(own.first(0), reverse, list("abcde"), 1).rows.shape == (2, 0)


def test_k_below_one_is_a_defect() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        bidirectional_order(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), 0)
