from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import unit

from xmatch.search import near_duplicates
from xmatch.search.near_duplicates import connected, cosines, find_clusters, near_pairs, smallest_similarity

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def by_definition(rows: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (wide @ wide.T) / lengths[:, None] / lengths
    return {
        (i, j): cosine[i, j] for i in range(len(rows)) for j in range(i + 1, len(rows)) if cosine[i, j] >= threshold
    }


def clustered(rng: np.random.Generator, count: int, width: int, spread: float) -> np.ndarray:
    """Rows around a few centres, of many lengths or of one, some zero."""
    centres = unit(rng, 4, width)
    rows = unit(rng, count, width) * spread + centres[rng.integers(0, 4, count)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if rng.random() < 0.5:
        rows *= 10.0 ** rng.integers(-18, 18, (count, 1))
    rows[rng.random(count) < 0.1] = 0
    return rows.astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 90),
    width=st.integers(2, 12),
    spread=st.sampled_from([0.01, 0.3, 0.9]),
    threshold=st.sampled_from([0.2, 0.8, 0.99]),
    depth=st.sampled_from([1, 16]),
    backend=st.sampled_from(["torch", "faiss"]),
)
def test_no_pair_is_missed_and_none_is_too_much(seed, count, width, spread, threshold, depth, backend) -> None:
    rows = clustered(np.random.default_rng(seed), count, width, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "FIRST_DEPTH", depth)
        patch.setattr(near_duplicates, "QUERY_BLOCK", 7)
        patch.setattr(near_duplicates, "MOST_RESULTS", 40)
        found = near_pairs(rows, threshold, backend)
    pairs = list(zip(found.left.tolist(), found.right.tolist()))
    sure, possible = by_definition(rows, threshold + 1e-9), by_definition(rows, threshold - 1e-9)
    assert set(sure) <= set(pairs) <= set(possible)
    assert pairs == sorted(set(pairs))
    np.testing.assert_allclose(found.similarities, [possible[pair] for pair in pairs], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bit_keys_are_searched_as_they_lie(dtype, monkeypatch) -> None:
    rows = unit(np.random.default_rng(0), 300, 6).astype(dtype)

    def refuse(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("the bank was copied")

    monkeypatch.setattr(near_duplicates, "_unit", refuse)
    found = near_pairs(rows, 0.97, "torch")
    assert set(zip(found.left.tolist(), found.right.tolist())) == set(by_definition(rows, 0.97))
    assert len(found.left) > 5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_a_walk_over_the_edges(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    near: dict[int, set[int]] = {node: {node} for node in range(count)}
    for a, b in edges:
        joined = near[a] | near[b]
        for node in joined:
            near[node] = joined
    ends = np.array(edges, np.int64).reshape(-1, 2).T
    assert connected(ends[0], ends[1], count).tolist() == [min(near[node]) for node in range(count)]


def test_a_long_path_is_one_component() -> None:
    path = np.random.default_rng(0).permutation(20_000)
    assert not connected(path[:-1], path[1:], 20_000).any()


def test_clusters_chain_and_say_how_far() -> None:
    angles = np.deg2rad([0, 10, 20, 30, 90, 93, 200])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    rows = rows[[5, 0, 1, 0, 2, 3, 6, 4]]
    clusters = find_clusters(rows, np.cos(np.deg2rad(12)))
    assert clusters.labels.tolist() == [0, 1, 1, 1, 1, 1, 6, 0]
    assert [part.tolist() for part in clusters.sizes()] == [[1, 0], [5, 2]]
    assert clusters.members(1).tolist() == [1, 2, 3, 4, 5]
    assert clusters.duplicates.copies == 1
    assert list(zip(clusters.pairs.left.tolist(), clusters.pairs.right.tolist())) == [(0, 7), (1, 2), (2, 4), (4, 5)]
    np.testing.assert_allclose(smallest_similarity(rows, clusters.members(1)), np.cos(np.deg2rad(30)), atol=1e-6)
    np.testing.assert_allclose(
        cosines(rows, np.array([0, 1]), np.array([7, 5])), np.cos(np.deg2rad([3, 30])), atol=1e-7
    )


def test_many_copies_cost_no_pairs() -> None:
    rows = np.repeat(unit(np.random.default_rng(0), 30, 16), 200, axis=0)
    clusters = find_clusters(rows, 0.9)
    assert not len(clusters.pairs.left)
    assert clusters.sizes()[1].tolist() == [200] * 30


def test_progress_counts_every_distinct_key() -> None:
    told: list[int] = []
    find_clusters(np.repeat(unit(np.random.default_rng(0), 50, 4), 2, axis=0), 0.9, advance=told.append)
    assert sum(told) == 50


def test_what_has_no_direction_is_near_to_nothing() -> None:
    assert not len(near_pairs(np.zeros((3, 4), np.float32), 0.5).left)
    assert not len(near_pairs(np.zeros((0, 4), np.float32), 0.5).left)
    assert find_clusters(np.zeros((3, 4), np.float32), 0.5).labels.tolist() == [0, 0, 0]  # but they are equal
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            near_pairs(np.ones((2, 2), np.float32), threshold)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_the_smallest_similarity_is_that_of_all_pairs(seed: int, count: int) -> None:
    rows = unit(np.random.default_rng(seed), 80, 5)
    members = np.arange(0, 80)[:count]
    every = rows[members].astype(np.float64) @ rows[members].T.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "DENSE_ROWS", 9)
        np.testing.assert_allclose(smallest_similarity(rows, members), min(1.0, every.min()), atol=1e-6)
