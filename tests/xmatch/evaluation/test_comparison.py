from __future__ import annotations

import pytest

from xmatch.evaluation.bootstrap import Interval
from xmatch.evaluation.comparison import comparison_text
from xmatch.evaluation.published import CXC, PUBLISHED

SIX = {f"{way}_recall_at_{k}": value for way in ("i2t", "t2i") for k, value in ((1, 58.0), (5, 85.0), (10, 92.0))}


@pytest.mark.parametrize("benchmark", list(PUBLISHED))
def test_the_run_stands_in_its_place_among_all_published_rows(benchmark: str) -> None:
    text = comparison_text(benchmark, {**SIX, "rsum": 470.0}, {}, "mine")
    rows = [line for line in text.splitlines() if line.startswith("│") and line.rstrip(" │")[-2:-1] == "."]
    sums = [float(line.split("│")[-2]) for line in rows if line.count("│") == 9]
    assert sums == sorted(sums, reverse=True)
    assert len(sums) == len(PUBLISHED[benchmark]) + 1
    [own] = [line for line in rows if "> this run" in line]
    assert [cell.strip() for cell in own.split("│")[2:5]] == ["58.0", "85.0", "92.0"]
    assert "†" in text


def test_cxc_shows_both_conventions_the_published_rows_and_the_correlations() -> None:
    figures = {**SIX, "eccv_caption_t2i_recall_at_1": 61.25, "sts_correlation": 70.0, "sts_correlation_deviation": 0.5}
    text = comparison_text("cxc", figures, {}, "mine")
    assert all(row.model in text for row in CXC)
    assert "eccv_caption" in text
    assert "61.2" in text
    assert "70.0 ± 0.5" in text


def test_eccv_shows_intervals_and_what_is_not_there_as_a_dash() -> None:
    figures = {**SIX, "rsum": 470.0, "eccv_i2t_map_at_r": 31.3}
    text = comparison_text("eccv", figures, {"eccv_i2t_map_at_r": Interval(31.3, 30.1, 32.2)}, "mine")
    assert "30.1 to 32.2" in text
    assert "–" in text


def test_without_published_figures_that_is_said() -> None:
    assert "No published figures of flickr8k" in comparison_text("flickr8k", SIX, {}, "mine")
    assert "published" not in comparison_text("", SIX, {}, "mine")
