from __future__ import annotations

import pytest

from xmatch.errors import InputError
from xmatch.evaluation.published import CXC, CXC_CORRELATIONS, PUBLISHED, RECALLED, published_rows

ROWS = [(name, row) for name, rows in PUBLISHED.items() for row in rows]


@pytest.mark.parametrize(("benchmark", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value.model)
def test_recalls_grow_with_depth_and_add_up_to_the_printed_sum(benchmark: str, row) -> None:
    for recalls in (row.i2t, row.t2i):
        assert 0 < recalls[0] < recalls[1] < recalls[2] <= 100
    assert row.rsum == pytest.approx(sum(row.i2t) + sum(row.t2i), abs=0.11)  # each figure was rounded on its own


def test_rows_are_told_apart() -> None:
    for rows in PUBLISHED.values():
        names = [row[:4] for row in rows]
        assert len(set(names)) == len(names)


def test_ensembles_beat_their_parts() -> None:
    for rows in PUBLISHED.values():
        wsl = {row.is_ensemble: row.rsum for row in rows if row.model == "VSE-infinity" and row.image == "WSL grid"}
        assert wsl[True] > wsl[False]


def test_known_rows() -> None:
    assert [len(published_rows(name)) for name in ("flickr30k", "coco_1k", "coco_5k", "cxc")] == [21, 21, 20, 4]
    assert max(row.rsum for row in PUBLISHED["flickr30k"]) == 555.1
    assert max(row.rsum for row in PUBLISHED["coco_1k"]) == 548.1
    assert max(row.rsum for row in PUBLISHED["coco_5k"]) == 474.8
    assert CXC[-1].i2t == (67.9, 90.6)
    assert {row.model for row in PUBLISHED["coco_1k"] if row.source == RECALLED} == {"CAMERA", "VSRN"}
    assert all("recalled" in row.source for row in CXC_CORRELATIONS)


def test_benchmarks_without_figures_and_unknown_ones() -> None:
    assert published_rows("flickr8k") == published_rows("eccv") == ()
    with pytest.raises(InputError, match="choose one of coco_1k"):
        published_rows("coco")
