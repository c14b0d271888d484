"""Two-step retrieval: the original's ranks, and the laws of its pools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvptr_cases import golden
from small_gallery import small_gallery

from alignment.mvptr.two_step import (
    FINE,
    FUSED,
    PoolConfig,
    coarse_pools,
    ordered_pool,
    pool_pairs,
    pool_recall,
    pool_scores,
    recall_fractions,
    two_step_stages,
)
from alignment.mvptr.two_step_tuning import FusionConfig, plain_fusion, read_fusion, tune_fusion
from alignment.rerank.candidates import EMPTY, WAYS, Lists, search_lists
from alignment.rerank.figures import list_ranks, mean_recall
from alignment.rerank.tuned_file import refuse_tuned_split, write_settings
from xmatch.errors import InputError
from xmatch.evaluation.ranks import MISSED

CASE = golden("two_step_retrieval")
OWNERS = np.repeat(np.arange(4), 2)
SIMILARITY = np.array(CASE["coarse_sim_images_x_captions"], np.float32)


def golden_pools() -> dict:
    """The pools of the original, found by the exact search: captions are the axes of the images' space."""
    texts = np.eye(8, dtype=np.float32)
    return {"t2i": search_lists(texts, SIMILARITY, 2), "i2t": search_lists(SIMILARITY, texts, 3)}


def their_ranks(ranks: np.ndarray, pool: int) -> list[int]:
    """Ours as the original counts: from 0, the pool's size where there is no match."""
    return np.where(ranks == MISSED, pool, ranks - 1).tolist()


def test_pools_ranks_and_recall_are_the_originals() -> None:
    pools = golden_pools()
    captions = [[10 * (row // 2 + 1), row % 2] for row in range(8)]
    assert [[captions[row] for row in rows] for rows in pools["i2t"].rows] == CASE["i2t_pool"]
    assert pools["t2i"].rows.tolist() == CASE["t2i_pool_image_positions"]
    full = {"t2i": search_lists(np.eye(8, dtype=np.float32), SIMILARITY, 4)}
    full["i2t"] = search_lists(SIMILARITY, np.eye(8, dtype=np.float32), 8)
    for way in WAYS:
        scores = np.array(CASE[f"fine_scores_{way}"], np.float32)
        ranks = list_ranks(way, ordered_pool(pools[way], scores), OWNERS)
        assert their_ranks(ranks, scores.shape[1]) == CASE[f"fine_{way}_ranks"]
        pooled = np.where(ranks == MISSED, scores.shape[1] + 1, ranks)  # the toy's pools are shorter than ten
        assert recall_fractions(pooled) == CASE["metrics_fine"][f"{way}_retrieval"]
        coarse = list_ranks(way, full[way], OWNERS)
        assert (coarse - 1).tolist() == CASE[f"coarse_{way}_ranks"]
        assert recall_fractions(coarse) == CASE["metrics_coarse"][f"{way}_retrieval"]


def test_pool_recall_is_the_share_of_pools_with_a_match() -> None:
    found = pool_recall(golden_pools(), OWNERS)
    missed = {way: sum(r == n for r in CASE[f"fine_{way}_ranks"]) for way, n in (("i2t", 3), ("t2i", 2))}
    assert found == {"t2i": 100.0 * (1 - missed["t2i"] / 8), "i2t": 100.0 * (1 - missed["i2t"] / 4)}


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 14), st.booleans())
def test_two_steps_are_the_whole_ranking_within_the_pools(seed: int, images: int, captions: int, ties: bool) -> None:
    """Brute force: every pair scored, each query's list is its pool, sorted by score, then by coarse place."""
    draw = np.random.default_rng(seed)
    vectors = [draw.normal(size=(n, 3)).astype(np.float32) for n in (images, captions)]
    scores = draw.integers(0, 3, (captions, images)) if ties else draw.uniform(size=(captions, images))
    pools = coarse_pools(*vectors, PoolConfig(captions_per_image=10, images_per_caption=10))
    pairs = pool_pairs(pools, images)
    assert len(set(pairs.key.tolist())) == len(pairs)
    scored = scores[pairs.caption, pairs.image].astype(np.float32)
    for way in WAYS:
        fine = pool_scores(way, pools[way], pairs, scored, images)
        found = ordered_pool(pools[way], fine)
        table = scores if way == "t2i" else scores.T
        for query, (pool, row) in enumerate(zip(pools[way].rows.tolist(), found.rows.tolist(), strict=True)):
            assert row == sorted(pool, key=lambda item: (-np.float32(table[query, item]), pool.index(item)))


def test_an_empty_place_stays_last_and_a_missing_pair_is_a_defect() -> None:
    lists = Lists(np.array([[2, 0, EMPTY]]), np.array([[0.9, 0.1, 0.0]], np.float32))
    pools = {"t2i": lists, "i2t": Lists(np.full((3, 1), EMPTY), np.zeros((3, 1), np.float32))}
    pairs = pool_pairs(pools, 3)
    assert (pairs.caption.tolist(), pairs.image.tolist()) == ([0, 0], [0, 2])
    fine = pool_scores("t2i", lists, pairs, np.array([0.7, 0.2], np.float32), 3)
    assert ordered_pool(lists, fine).rows.tolist() == [[0, 2, EMPTY]]
    with pytest.raises(ValueError, match="not scored"):
        pool_scores("t2i", Lists(np.array([[1]]), np.zeros((1, 1), np.float32)), pairs, np.zeros(2, np.float32), 3)


def drawn_case(seed: int = 0) -> tuple:
    """Pools of twenty images with two captions each, and fine scores that know less than the coarse ones."""
    draw = np.random.default_rng(seed)
    images = draw.normal(size=(20, 6)).astype(np.float32)
    texts = np.repeat(images, 2, 0) + draw.normal(size=(40, 6)).astype(np.float32)
    pools = coarse_pools(images, texts, PoolConfig(captions_per_image=12, images_per_caption=12))
    fine = {way: draw.uniform(size=pools[way].rows.shape).astype(np.float32) for way in WAYS}
    return pools, fine, np.repeat(np.arange(20), 2)


def test_a_tuned_weight_is_the_best_that_was_tried_and_fine_alone_on_a_draw() -> None:
    pools, fine, owners = drawn_case()
    found = tune_fusion(pools, fine, owners, FusionConfig())
    for way in WAYS:
        trials = [trial for trial in found.trials if trial.way == way]
        assert [trial.is_taken for trial in trials].count(True) == 1
        assert max(trial.mean_recall for trial in trials) == next(t.mean_recall for t in trials if t.is_taken)
        assert found.weights[way] > 0  # the fine scores were drawn
    ordered = {way: -np.arange(12, dtype=np.float32) + np.zeros_like(fine[way]) for way in WAYS}
    assert tune_fusion(pools, ordered, owners, FusionConfig()).weights == dict.fromkeys(WAYS, 0.0)


def test_a_stage_for_each_step() -> None:
    pools, fine, owners = drawn_case()
    weights = tune_fusion(pools, fine, owners, FusionConfig()).weights
    stages = {stage.name: stage for stage in two_step_stages(pools, fine, weights)}
    assert list(stages) == ["Coarse", "Fine", "Fused"]
    for way in WAYS:
        recalls = {name: mean_recall(list_ranks(way, stages[name].lists[way], owners)) for name in stages}
        assert recalls[FUSED] >= recalls[FINE]
    assert [stage.name for stage in two_step_stages(pools, fine)] == ["Coarse", "Fine"]


def test_tuned_weights_come_back_and_are_refused_where_they_were_tuned(tmp_path: Path) -> None:
    gallery, weights = small_gallery(), {"t2i": 0.1, "i2t": 0.0}
    given_ = (plain_fusion(weights), [], gallery)
    write_settings(str(tmp_path), *given_, "val", {})
    tuned = read_fusion(str(tmp_path))
    assert tuned.settings == weights
    with pytest.raises(InputError, match="were tuned on 10 of the 10 images"):
        refuse_tuned_split(tuned, gallery, "val", allow=False, threads=0)
    with pytest.raises(InputError, match="tuning on the split 'test' is refused"):
        write_settings(str(tmp_path), *given_, "test", {})
    (tmp_path / "tuned.json").write_text('{"settings": {"t2i": {}}}')
    with pytest.raises(InputError, match="holds no tuned settings: 'coarse_weight'"):
        read_fusion(str(tmp_path))


def test_pools_are_as_deep_as_recall_is_measured() -> None:
    with pytest.raises(InputError, match="at least 10 candidates"):
        PoolConfig(images_per_caption=9)
    with pytest.raises(InputError, match="must not be negative"):
        FusionConfig(weights=(-1.0,))
