"""Recall of lists: against ranks over all candidates, and against the originals' evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.rerank.bidirectional import rerank_bidirectional
from alignment.rerank.candidates import EMPTY, Lists, search_lists
from alignment.rerank.figures import Stage, list_ranks, losses, mean_recall, stage_figures, table_text
from xmatch.evaluation.measures import ConfidenceConfig
from xmatch.evaluation.ranks import MISSED, image_to_text_ranks, text_to_image_ranks

GOLDEN = Path(__file__).parents[2] / "golden" / "agree_mvptr"
FAST = ConfidenceConfig(resamples=50)


def of_rows(rows) -> Lists:
    found = np.array(rows)
    return Lists(found, np.zeros(found.shape, np.float32))


def test_ranks_in_whole_lists_are_the_ranks_over_all_candidates() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((9, 4)).astype(np.float32), rng.standard_normal((27, 4)).astype(np.float32)
    owner = rng.permutation(np.repeat(np.arange(9), 3))
    whole = {"t2i": search_lists(texts, images, 9), "i2t": search_lists(images, texts, 27)}
    expected = {"t2i": text_to_image_ranks(images, texts, owner), "i2t": image_to_text_ranks(images, texts, owner)}
    for way in ("t2i", "i2t"):
        assert list_ranks(way, whole[way], owner).tolist() == expected[way].tolist()
        cut = list_ranks(way, whole[way].first(3), owner)
        assert cut.tolist() == np.where(expected[way] <= 3, expected[way], MISSED).tolist()
        assert (list_ranks(way, whole[way].first(0), owner) == MISSED).all()


def test_empty_places_match_nothing() -> None:
    owner = np.array([0, 1, 1])
    assert list_ranks("i2t", of_rows([[1, EMPTY], [EMPTY, EMPTY]]), owner).tolist() == [MISSED, MISSED]
    assert list_ranks("t2i", of_rows([[EMPTY, 0], [1, 0], [0, EMPTY]]), owner).tolist() == [2, 1, MISSED]


@pytest.mark.parametrize("name", ["agree_tbr_eval_40x5", "agree_tbr_eval_30x3_noisy"])
def test_the_originals_figures_before_and_after(name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    owner = np.repeat(np.arange(case["n_images"]), case["captions_per_image"])
    before = {"t2i": of_rows(case["text_predictions"]), "i2t": of_rows(case["image_predictions"])}
    ids = [str(row) for row in range(len(owner))]
    after = {
        way: rerank_bidirectional(before[way], before[other], ids, case["top_k"])
        for way, other in (("t2i", "i2t"), ("i2t", "t2i"))
    }
    stages = [Stage("before", before, {}), Stage("TBR", after, {})]
    figures = stage_figures(stages, owner, case["n_images"], FAST)
    for way, side in (("t2i", "text"), ("i2t", "image")):
        for stage, when in zip(figures, ("before", "after")):
            expected = case["evaluation"][f"{side}_{when}"]["scoreJson"]
            for ours, theirs in (("recall_at_1", "r1"), ("recall_at_5", "r5"), ("recall_at_10", "r10")):
                assert stage.values[f"{way}_{ours}"].value == pytest.approx(expected[theirs])
            assert stage.values[f"{way}_mean_recall"].value == pytest.approx(expected["mean_recall"])
            assert mean_recall(list_ranks(way, stages[when == "after"].lists[way], owner)) == pytest.approx(
                expected["score"]
            )
        gain = figures[1].gains[f"{way}_recall_at_1"]
        change = (case["evaluation"][f"{side}_{one}"]["scoreJson"]["r1"] for one in ("after", "before"))
        assert gain.value == pytest.approx(next(change) - next(change))
        assert gain.low <= gain.value <= gain.high
    told = losses(figures, "TBR")
    assert len(told) == (2 if "noisy" in name else 0)
    assert losses(figures, "EGR") == []
    text = table_text(figures, "Title")
    assert text.count("gain") == 2 and "image to text" in text and "Title" in text


def test_a_gain_of_the_same_queries_is_surer_than_either_figure() -> None:
    """One caption in twenty gains a place: the intervals of the recalls overlap widely, that of the gain is above 0."""
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(400), 1)
    right = rng.random(400) < 0.5
    before = of_rows(np.where(right[:, None], [[0, -1]], [[1, 0]]))
    rows = np.where(before.rows == 0, owner[:, None], (owner[:, None] + 1) % 400)
    better = rows.copy()
    better[:20] = rows[:20, ::-1] if not right[:20].any() else np.stack([owner[:20], (owner[:20] + 1) % 400], 1)
    both = {way: [of_rows(rows), of_rows(better)] for way in ("t2i", "i2t")}
    stages = [Stage(name, {way: both[way][at] for way in both}, {}) for at, name in enumerate(("before", "TBR"))]
    first, second = stage_figures(stages, owner, 400, ConfidenceConfig(resamples=300))
    name = "t2i_recall_at_1"
    assert first.values[name].high > second.values[name].low
    assert second.gains[name].low > 0
