from __future__ import annotations

import numpy as np
import pytest

from xmatch.errors import InputError
from xmatch.evaluation.bootstrap import QueryRanks, mean_intervals, recall_intervals
from xmatch.evaluation.report import retrieval_figures


def some_ranks(seed: int, images: int = 200) -> QueryRanks:
    rng = np.random.default_rng(seed)
    return QueryRanks(rng.geometric(0.2, images), rng.geometric(0.1, 5 * images), np.repeat(np.arange(images), 5))


def test_values_are_the_figures_and_lie_inside() -> None:
    ranks = some_ranks(0)
    found = recall_intervals([ranks])
    figures = retrieval_figures(ranks.image_to_text, ranks.text_to_image)
    assert set(found) == {name for name in figures if "recall" in name or name == "rsum"}
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(figures[name])
        assert low < value < high


def test_the_seed_decides_and_a_higher_level_is_wider() -> None:
    ranks = some_ranks(1)
    assert recall_intervals([ranks], seed=3) == recall_intervals([ranks], seed=3)
    assert recall_intervals([ranks], seed=3) != recall_intervals([ranks], seed=4)
    wide, narrow = (recall_intervals([ranks], level=level)["rsum"] for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_width_is_that_of_a_mean_of_independent_images() -> None:
    ranks = some_ranks(2, images=1000)
    value, low, high = recall_intervals([ranks], samples=2000)["i2t_recall_at_1"]
    share = value / 100
    assert high - low == pytest.approx(100 * 2 * 1.96 * np.sqrt(share * (1 - share) / 1000), rel=0.1)


def test_captions_that_agree_within_an_image_widen_the_interval() -> None:
    ranks = some_ranks(3, images=400)
    alike = ranks._replace(text_to_image=np.repeat(ranks.image_to_text, 5))
    spread = ranks._replace(text_to_image=np.tile(ranks.image_to_text, 5))
    widths = [found.high - found.low for found in (recall_intervals([r])["t2i_recall_at_1"] for r in (alike, spread))]
    assert widths[0] > 1.7 * widths[1]


def test_folds_are_averaged_and_certain_ranks_have_no_width() -> None:
    parts = [some_ranks(seed) for seed in range(5)]
    each = [recall_intervals([part])["rsum"].value for part in parts]
    assert recall_intervals(parts)["rsum"].value == pytest.approx(np.mean(each))
    perfect = QueryRanks(np.ones(3, int), np.ones(6, int), np.repeat(np.arange(3), 2))
    assert recall_intervals([perfect])["rsum"] == (600, 600, 600)


def test_bad_requests_are_named() -> None:
    with pytest.raises(InputError, match="0 parts"):
        recall_intervals([])
    with pytest.raises(InputError, match="level 95"):
        recall_intervals([some_ranks(0)], level=95)
    with pytest.raises(InputError, match="5 rows of caption_image"):
        recall_intervals([QueryRanks(np.ones(1, int), np.ones(4, int), np.zeros(5, int))])


def test_means_over_queries_agree_with_recalls_and_ignore_images_without_queries() -> None:
    ranks = some_ranks(1)
    hits = 100.0 * (ranks.text_to_image[:, None] <= np.array([1, 5, 10]))
    found = mean_intervals(hits, ranks.caption_image, samples=2000)
    expected = recall_intervals([ranks], samples=2000)
    for k, one in zip((1, 5, 10), found):
        assert one.value == pytest.approx(expected[f"t2i_recall_at_{k}"].value)
        assert one.low == pytest.approx(expected[f"t2i_recall_at_{k}"].low, abs=0.7)
        assert one.high == pytest.approx(expected[f"t2i_recall_at_{k}"].high, abs=0.7)
    assert mean_intervals(hits, 10 * ranks.caption_image, samples=2000) == found


def test_means_that_cannot_be_drawn_are_refused() -> None:
    for values, image in (
        (np.ones((0, 1)), np.ones(0, int)),
        (np.ones(3), np.ones(3, int)),
        (np.ones((3, 1)), np.ones(2, int)),
    ):
        with pytest.raises(InputError, match="cannot be drawn"):
            mean_intervals(values, image)
