from __future__ import annotations

import numpy as np

from xmatch.evaluation.report import recall_plot, retrieval_figures, table_text


def test_figures_of_known_ranks() -> None:
    figures = retrieval_figures(np.array([1, 6]), np.array([1, 2, 11, 3]))
    assert (figures["i2t_recall_at_1"], figures["i2t_recall_at_5"], figures["i2t_recall_at_10"]) == (50, 50, 100)
    assert (figures["t2i_recall_at_1"], figures["t2i_recall_at_5"], figures["t2i_recall_at_10"]) == (25, 75, 75)
    assert (figures["t2i_median_rank"], figures["t2i_mean_rank"]) == (2, 4.25)
    assert figures["rsum"] == 375


def test_the_table_shows_both_directions_and_the_plot_is_a_png() -> None:
    ranks = np.array([1, 2, 30])
    text = table_text(retrieval_figures(ranks, ranks), "flickr")
    assert "image to text" in text
    assert "rsum 333.3" in text
    assert recall_plot(ranks, ranks, "flickr").startswith(b"\x89PNG")
