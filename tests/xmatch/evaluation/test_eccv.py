from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.evaluation import eccv
from xmatch.evaluation.eccv import (
    GroundTruth,
    eccv_figures,
    eccv_scores,
    package_scores,
    r_precision,
    ranked_lists,
    read_ground_truth,
    retrieved,
)
from xmatch.evaluation.similarities import MatrixSimilarities

TOY = json.loads((Path(__file__).parents[2] / "golden" / "eccv_metrics_toy.json").read_text())
needs_package = pytest.mark.skipif(importlib.util.find_spec("eccv_caption") is None, reason="needs eccv_caption")


@given(seed=st.integers(0, 999), rows=st.integers(1, 8), columns=st.integers(1, 12), levels=st.integers(1, 9))
def test_lists_are_the_head_of_a_stable_sort(seed: int, rows: int, columns: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (rows, columns)).astype(np.float32)
    row_ids, column_ids = rng.permutation(rows) + 100, rng.permutation(columns) + 500
    sides = (("rows", scores, row_ids, column_ids), ("columns", scores.T, column_ids, row_ids))
    for direction, matrix, queries, candidates in sides:
        depths = {int(q): int(rng.integers(1, len(candidates) + 1)) for q in queries[: len(queries) // 2 + 1]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eccv, "STRIP", 3)
            found = ranked_lists(MatrixSimilarities(scores), queries, candidates, depths, direction)
        order = candidates[np.argsort(-matrix, axis=1, kind="stable")]
        where = {int(q): at for at, q in enumerate(queries)}
        assert found == {q: order[where[q], :depth].tolist() for q, depth in depths.items()}


@given(st.integers(1, 20), st.integers(0, 999))
def test_figures_are_one_when_matches_come_first_and_bounded_by_r_precision(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matches = rng.choice(100, count, replace=False).tolist()
    assert eccv_figures({1: matches}, {1: matches}) == (1, 1, 1)
    found = eccv_figures({1: rng.permutation(100).tolist()}, {1: matches})
    assert 0 <= found.map_at_r <= found.r_precision <= 1


def test_the_toy_of_the_package() -> None:
    ranked = {int(q): ids for q, ids in TOY["retrieved"].items()}
    matches = {int(q): ids for q, ids in TOY["gt"].items()}
    expected = [TOY["eccv"][name] for name in ("eccv_map_at_r", "eccv_rprecision", "eccv_r1")]
    assert eccv_figures(ranked, matches) == pytest.approx(expected, abs=1e-12)
    assert r_precision(ranked, matches) == pytest.approx(TOY["rprecision"], abs=1e-12)


def test_a_matrix_read_by_eye() -> None:
    source = MatrixSimilarities(np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]]))
    truth = GroundTruth({5: [10, 30], 6: [30]}, {20: [5]})
    found = eccv_scores(source, np.array([5, 6]), np.array([10, 20, 30]), truth)
    assert found["i2t"] == ((0.5 + 1) / 2, (0.5 + 1) / 2, 1)
    assert found["t2i"] == (1, 1, 1)
    assert retrieved(source, np.array([5, 6]), np.array([10, 20, 30]), truth, depth=3)[0][6] == [30, 20, 10]


@needs_package
@pytest.mark.parametrize("seed", [0, 1])
def test_the_package_agrees_over_its_ground_truth(seed: int) -> None:
    truth, rng = read_ground_truth("eccv"), np.random.default_rng(seed)
    assert (len(truth.image_to_caption), len(truth.caption_to_image)) == (1261, 1332)
    ranked = []
    for matches, depth in zip(truth, (60, 30), strict=True):
        gallery = np.array(sorted({one for true in matches.values() for one in true}))
        lists = {}
        for query, true in matches.items():  # a random share of the matches, amid others, in random order
            pool = np.concatenate([true[: rng.integers(0, len(true) + 1)], rng.choice(gallery, depth, replace=False)])
            lists[query] = rng.permutation(np.unique(pool)).tolist()
        ranked.append(lists)
    theirs = package_scores(*ranked)
    for way, lists, matches in zip(("i2t", "t2i"), ranked, truth, strict=True):
        assert eccv_figures(lists, matches) == pytest.approx(theirs[way], abs=1e-6)
        assert 0.02 < theirs[way].map_at_r < 0.95


@needs_package
def test_other_matches_of_the_package_and_plausible_ones_of_the_user(tmp_path: Path) -> None:
    assert sum(map(len, read_ground_truth("cxc").image_to_caption.values())) == 35585
    with pytest.raises(InputError, match="PMRP needs"):
        read_ground_truth("pm")
    (tmp_path / "pm_image_to_caption.json").write_text('{"1": ["10", 11]}')
    (tmp_path / "pm_caption_to_image.json").write_text('{"10": [1]}')
    assert read_ground_truth("pm", str(tmp_path)) == ({1: [10, 11]}, {10: [1]})


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no query has matches"):
        eccv_figures({}, {})
    with pytest.raises(InputError, match="query 1 has 2 matches and 1 ranked"):
        eccv_figures({1: [4]}, {1: [4, 5]})
    with pytest.raises(InputError, match="query 1 lists a candidate twice"):
        eccv_figures({1: [4, 4]}, {1: [4, 5]})
    source = MatrixSimilarities(np.ones((1, 2)))
    with pytest.raises(InputError, match="query 9 of the ground truth"):
        ranked_lists(source, np.array([1]), np.array([2, 3]), {9: 1}, "rows")
    with pytest.raises(InputError, match="do not fit"):
        ranked_lists(source, np.array([1]), np.array([2]), {1: 1}, "rows")
    (tmp_path / "eccv_image_to_caption.json").write_text("[1]")
    with pytest.raises(InputError, match="Download it again"):
        read_ground_truth("eccv", str(tmp_path))
    monkeypatch.setattr(eccv, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install no_such_package"):
        package_scores({}, {})
