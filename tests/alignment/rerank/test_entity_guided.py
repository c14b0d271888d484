"""Entity-guided re-ranking: the formulas written out, the original's lists, empty slots and ties."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_reranking import random_case, slots_of

from alignment.rerank.candidates import EMPTY, Lists, search_lists
from alignment.rerank.entity_guided import Evidence, entity_evidence, guided_lists
from alignment.rerank.entity_slots import with_bare_text
from alignment.rerank.settings import RerankSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "agree_mvptr"
SETTINGS = RerankSettings()


def golden(name: str) -> dict:
    found = json.loads((GOLDEN / f"{name}.json").read_text())
    arrays = ("image_feats", "text_feats", "prompt_feats", "mask_feats")
    return found | {key: np.array(found[key], np.float32) for key in arrays}


@pytest.mark.parametrize("empty", ["ignored", "bare_text"])
@pytest.mark.parametrize("name", ["agree_egr_small", "agree_egr_pool128"])
def test_the_originals_lists(name: str, empty: str) -> None:
    """All slots are filled, so empty ones do not matter."""
    case = golden(name)
    images, texts = case["image_feats"], case["text_feats"]
    slots = slots_of(case["prompt_feats"], case["mask_feats"])
    if empty == "bare_text":
        slots = with_bare_text(slots, np.ones((1, images.shape[1]), np.float32))
    exact = 0
    for way, queries, items in (("t2i", texts, images), ("i2t", images, texts)):
        config = dataclasses.replace(SETTINGS.of(way).egr, pool=case["inner_pool"])
        evidence = entity_evidence(way, search_lists(queries, items, config.pool), images, slots)
        found = guided_lists(way, evidence, config, case["top_k"])
        for query, expected in enumerate(case[f"{'text' if way == 't2i' else 'image'}_predictions"]):
            finals = np.array([item[3] for item in expected])
            np.testing.assert_allclose(found.lists.scores[query], finals, rtol=1e-4, atol=2e-5)
            ids = [item[0] for item in expected]
            for place, item in enumerate(expected):
                gaps = np.abs(np.delete(finals, place) - finals[place])
                if gaps.min() > 1e-5 and place < len(ids) - 1:
                    assert found.lists.rows[query, place] == item[0]
                    assert found.similarities[query, place] == pytest.approx(item[1], abs=2e-5, rel=1e-4)
                    assert found.first_scores[query, place] == pytest.approx(item[2], abs=2e-5, rel=1e-4)
            exact += found.lists.rows[query].tolist() == ids
    assert exact == len(texts) + len(images)


def test_without_the_pool_the_originals_lists_are_others() -> None:
    case = golden("agree_egr_pool128")
    slots = slots_of(case["prompt_feats"], case["mask_feats"])
    config = dataclasses.replace(SETTINGS.t2i.egr, pool=140)
    evidence = entity_evidence(
        "t2i", search_lists(case["text_feats"], case["image_feats"], 140), case["image_feats"], slots
    )
    found = guided_lists("t2i", evidence, config, 5).lists.rows.tolist()
    expected = [[item[0] for item in one] for one in case["text_predictions"]]
    assert sum(a != b for a, b in zip(found, expected)) == 77


def written_out(way, q, prompts, masks, image, config, size) -> tuple[float, float]:
    """The two scores of one pair in plain Python; vectors of one caption's entities."""
    p = [float(np.dot(one.astype(float), image)) for one in prompts]
    m = [float(np.dot(one.astype(float), image)) for one in masks]
    mean = sum(p) / len(p) if p else q
    losses = [q - one if way == "t2i" else min(0.0, q - one) for one in m]
    lost = size * sum(losses) / len(losses) if losses else 0.0
    if way == "t2i":
        first = (1 - config.mask_weight) * q + config.mask_weight * lost
        return first, (1 - config.prompt_weight) * first + config.prompt_weight * mean
    first = (1 - config.prompt_weight) * q + config.prompt_weight * mean
    return first, (1 - config.mask_weight) * first + config.mask_weight * lost


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["t2i", "i2t"]), st.integers(1, 10), st.integers(1, 9))
def test_scores_are_the_formulas(seed: int, way, pool: int, top_k: int) -> None:
    images, texts, prompts, masks, rng = random_case(seed)
    counts = rng.integers(0, 4, len(texts))
    slots = slots_of(prompts, masks, counts)
    queries, items = (texts, images) if way == "t2i" else (images, texts)
    config = dataclasses.replace(SETTINGS.of(way).egr, pool=pool, mask_weight=0.3, prompt_weight=0.4)
    lists = search_lists(queries, items, pool)
    found = guided_lists(way, entity_evidence(way, lists, images, slots), config, top_k)
    for query in range(len(queries)):
        scored = []
        for row, q in zip(lists.rows[query].tolist(), lists.scores[query].tolist()):
            caption, image = (query, row) if way == "t2i" else (row, query)
            own = (prompts[caption, : counts[caption]], masks[caption, : counts[caption]])
            scored.append((written_out(way, q, *own, images[image].astype(float), config, 3), row))
        scored.sort(key=lambda one: -one[0][1])
        assert found.lists.rows.shape[1] == min(top_k, pool, len(items))
        expected = scored[: found.lists.rows.shape[1]]
        np.testing.assert_allclose(found.lists.scores[query], [one[0][1] for one in expected], rtol=1e-5, atol=1e-6)
        of_row = {row: first for (first, _), row in scored}
        firsts = [of_row[row] for row in found.lists.rows[query].tolist()]
        np.testing.assert_allclose(found.first_scores[query], firsts, rtol=1e-5, atol=1e-6)


def test_empty_slots_contribute_nothing_unless_the_empty_text_stands_there() -> None:
    images, texts, prompts, masks, rng = random_case(3)
    counts = np.array([1, 3, 0, 2, 3, 1, 2, 0])
    pool = search_lists(texts, images, 6)
    found = [entity_evidence("t2i", pool, images, slots_of(prompts, other, counts)) for other in (masks, masks.copy())]
    spoilt = masks.copy()
    spoilt[np.arange(3) >= counts[:, None]] = 99
    again = entity_evidence("t2i", pool, images, slots_of(prompts, spoilt, counts))
    assert np.array_equal(again.differences, found[0].differences)
    none = counts == 0
    assert not found[0].differences[none].any()
    assert np.array_equal(found[0].prompts[none], pool.scores[none])
    bare = rng.standard_normal((1, 5)).astype(np.float32)
    legacy = entity_evidence("t2i", pool, images, with_bare_text(slots_of(prompts, masks, counts), bare))
    filled = masks.copy()
    filled[np.arange(3) >= counts[:, None]] = bare
    full = entity_evidence("t2i", pool, images, slots_of(prompts, filled))
    np.testing.assert_allclose(legacy.differences, full.differences, atol=1e-6)
    assert np.abs(legacy.differences - found[0].differences).max() > 0.1


def test_equal_candidates_go_to_the_lowest_row_wherever_they_lie() -> None:
    images, texts, prompts, masks, _ = random_case(7, images=40)
    images[[5, 17, 33]] = images[2]
    slots = slots_of(prompts, masks)
    config = dataclasses.replace(SETTINGS.t2i.egr, mask_weight=0.5)
    found = guided_lists("t2i", entity_evidence("t2i", search_lists(texts, images, 40), images, slots), config, 40)
    for rows in found.lists.rows.tolist():
        places = [rows.index(one) for one in (2, 5, 17, 33)]
        assert places == list(range(places[0], places[0] + 4))


def test_ties_of_the_final_score_are_settled_by_the_first_then_by_the_plain_score() -> None:
    """With weight 1 on prompts the final score is P alone."""
    q, p = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32), np.array([[0.5, 0.5, 0.5, 0.6]], np.float32)
    d = np.array([[0.0, 2.0, 0.0, 0.0]], np.float32)
    evidence = Evidence(Lists(np.array([[4, 3, 2, 1]]), q), p, d)
    config = dataclasses.replace(SETTINGS.t2i.egr, mask_weight=0.5, prompt_weight=1.0)
    assert guided_lists("t2i", evidence, config, 4).lists.rows.tolist() == [[1, 3, 4, 2]]


def test_short_lists_keep_their_empty_places_last() -> None:
    images, texts, prompts, masks, _ = random_case(1)
    pool = search_lists(texts, images, 4)
    pool.rows[0, 2:], pool.scores[0, 2:] = EMPTY, 0
    found = guided_lists("t2i", entity_evidence("t2i", pool, images, slots_of(prompts, masks)), SETTINGS.t2i.egr, 4)
    assert found.lists.rows[0, 2:].tolist() == [EMPTY, EMPTY]
    assert set(found.lists.rows[0, :2].tolist()) == set(pool.rows[0, :2].tolist())


def test_weights_of_nothing_change_nothing() -> None:
    images, texts, prompts, masks, _ = random_case(2)
    for way, queries, items in (("t2i", texts, images), ("i2t", images, texts)):
        pool = search_lists(queries, items, 6)
        config = dataclasses.replace(SETTINGS.of(way).egr, mask_weight=0.0, prompt_weight=0.0)
        found = guided_lists(way, entity_evidence(way, pool, images, slots_of(prompts, masks)), config, 6)
        assert np.array_equal(found.lists.rows, pool.rows)
        np.testing.assert_allclose(found.lists.scores, pool.scores)


def test_other_widths_are_a_defect() -> None:
    images, texts, prompts, masks, _ = random_case(2)
    with pytest.raises(ValueError, match=r"the widths \[5, 7\]"):
        entity_evidence("t2i", search_lists(texts, images, 2), np.zeros((6, 7), np.float32), slots_of(prompts, masks))
