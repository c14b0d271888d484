"""Published figures beside one's own."""

from __future__ import annotations

from alignment.mvptr.published import published_text

OWN = {
    "coarse": {"t2i_recall_at_1": 60.0, "i2t_recall_at_1": 77.0},
    "fine": {"t2i_recall_at_1": 84.5, "i2t_recall_at_1": 95.5},
}


def test_own_figures_stand_in_their_place_among_the_published() -> None:
    said = published_text("coco_5k", OWN)
    order = [said.index(name) for name in ("this run, fine", "MVPTR", "this run, coarse", "VinVL", "ALBEF")]
    assert order == sorted(order) and "60.1" in said and "77.3" in said


def test_a_split_that_nobody_published_has_no_table() -> None:
    assert published_text("", OWN) == published_text("cxc", OWN) == ""
