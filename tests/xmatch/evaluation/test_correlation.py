from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.evaluation.correlation import average_ranks, sampled_spearman, spearman


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_average_ranks_are_those_of_a_definition_in_words(values: list[int]) -> None:
    expected = [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]
    assert average_ranks(np.array(values, float)).tolist() == expected


def test_spearman_sees_order_only() -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal(50)
    assert spearman(left, np.exp(left)) == pytest.approx(1)
    assert spearman(left, -(left**3)) == pytest.approx(-1)
    assert spearman(left, np.ones(50)) == 0
    assert spearman(np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 6, 7, 8, 7])) == pytest.approx(0.8207826816681233)


def test_sampling_is_seeded_and_takes_one_pair_of_each_item() -> None:
    rng = np.random.default_rng(0)
    queries, ratings = rng.integers(0, 100, 600), rng.standard_normal(600)
    assert sampled_spearman(queries, ratings, ratings, samples=5).mean == pytest.approx(100)
    scores = ratings + rng.standard_normal(600)
    assert sampled_spearman(queries, ratings, scores, seed=1) == sampled_spearman(queries, ratings, scores, seed=1)
    one = sampled_spearman(queries, ratings, scores, samples=300)
    assert one.mean == pytest.approx(100 * spearman(ratings, scores), abs=3)
    assert 5 < one.deviation < 20  # about 1 / sqrt(50) for 50 independent pairs
    with pytest.raises(InputError, match="at least 4 items"):
        sampled_spearman(np.array([1, 2]), np.ones(2), np.ones(2))
