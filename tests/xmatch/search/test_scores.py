from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import exact_score

from xmatch.search.scores import exact_sum, norms, pair_scores

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=12)
TINY = 2.0**-24


@settings(deadline=None, max_examples=300)
@given(VECTORS)
def test_scores_are_the_exact_product_rounded_once(pairs: list[tuple[float, float]]) -> None:
    left, right = (np.array(side, np.float32) for side in zip(*pairs))
    true = exact_score(left, right)
    assert exact_sum(left.astype(np.float64) * right) == true
    found = pair_scores(left[None], right[None], (np.zeros(1, np.int64), np.zeros(1, np.int64)), norms(right[None]))
    assert found.scores[0] == true


@settings(deadline=None, max_examples=300)
@given(VECTORS)
def test_native_sums_are_exact_too(pairs: list[tuple[float, float]]) -> None:
    native = pytest.importorskip("_vokenray_search")
    left, right = (np.array(side, np.float32) for side in zip(*pairs))
    assert np.float32(native.exact_product(left, right)) == exact_score(left, right)


@pytest.mark.parametrize(
    ("left", "right", "score"),
    [
        ([1.0, TINY], [1.0, 1.0], 1.0),  # half way: to the even neighbour
        ([1.0, TINY, 2.0**-100], [1.0, 1.0, 1.0], 1 + 2 * TINY),  # a whisker above half way, lost in double precision
        ([1.0, TINY, -(2.0**-100)], [1.0, 1.0, 1.0], 1.0),
        ([1 + 2 * TINY, TINY, -(2.0**-100)], [1.0, 1.0, 1.0], 1 + 2 * TINY),
        ([2.0**100, 1.0, -(2.0**100)], [2.0**20, 1.0, 2.0**20], 1.0),  # double precision would say 0
        ([2.0**-149], [0.5], 0.0),
        ([2.0**-149, 2.0**-149], [0.5, 2.0**-100], 2.0**-149),
        ([3e38], [3e38], np.inf),
        ([3e38], [-3e38], -np.inf),
    ],
)
def test_roundings_that_double_precision_gets_wrong(left: list[float], right: list[float], score: float) -> None:
    a, b = np.array([left], np.float32), np.array([right], np.float32)
    one = np.zeros(1, np.int64)
    assert pair_scores(a, b, (one, one), norms(b)).scores[0] == np.float32(score)
    assert exact_sum(a[0].astype(np.float64) * b[0]) == np.float32(score)
