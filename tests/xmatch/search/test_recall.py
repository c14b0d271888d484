from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.search import SearchResult, build_searcher
from xmatch.search.approximate import build_approximate
from xmatch.search.approximate_config import ApproximateConfig
from xmatch.search.recall import recall_at_k, wilson_interval


class Fixed:
    """A search whose answer is known."""

    def __init__(self, scores: list[list[float]], ids: list[list[int]]) -> None:
        self.answer, self.key_count = SearchResult(np.array(scores, np.float32), np.array(ids, np.int64)), 100

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        return self.answer


EXACT = Fixed([[9, 8, 8], [5, 4, 3]], [[1, 2, 3], [4, 5, 6]])
QUERIES = np.zeros((2, 1), np.float32)


def test_hits_are_results_as_good_as_the_kth_best() -> None:
    found = Fixed([[9, 8, 8], [5, 2, 1]], [[1, 7, 3], [4, 8, 9]])  # 7 is as good as 2
    recall = recall_at_k(found, EXACT, QUERIES, 3)
    assert (recall.hits, recall.results, recall.queries, recall.k) == (4, 6, 2, 3)
    assert recall.recall == pytest.approx(4 / 6)
    assert recall.low < recall.recall < recall.high
    nothing = Fixed([[-np.inf] * 3] * 2, [[-1] * 3] * 2)
    assert recall_at_k(nothing, EXACT, QUERIES, 3)[:2] == (0, 0)


def test_the_exact_answer_has_all_of_itself() -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    exact = build_searcher(keys)
    for k in (1, 5, 9):  # nine are not there
        assert recall_at_k(exact, exact, queries, k).recall == 1
    with pytest.raises(ValueError, match="got 0 queries"):
        recall_at_k(exact, exact, queries[:0], 3)
    with pytest.raises(ValueError, match="and 0 keys"):
        recall_at_k(build_searcher(keys[:0]), build_searcher(keys[:0]), queries, 3)


def test_looking_into_more_lists_finds_more() -> None:
    rng = np.random.default_rng(1)
    keys, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (4000, 200))
    exact = build_searcher(keys)
    found = [
        recall_at_k(build_approximate(keys, "ivf", ApproximateConfig(lists=64, probes=p)), exact, queries, 10).recall
        for p in (1, 8, 64)
    ]
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.999


def test_intervals_are_those_of_the_literature() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


@given(share=st.floats(0, 1), trials=st.integers(1, 10**6))
def test_intervals_hold_the_share_and_shrink(share: float, trials: int) -> None:
    low, high = wilson_interval(share, trials)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    more = wilson_interval(share, 4 * trials)
    assert more[1] - more[0] < high - low
