from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_gallery import small_embeddings, small_gallery, write_cxc, write_truth

from xmatch.errors import InputError
from xmatch.evaluation import measures
from xmatch.evaluation.bootstrap import Interval
from xmatch.evaluation.measures import (
    ConfidenceConfig,
    Measured,
    Request,
    measure_cxc,
    measure_eccv,
    measure_folds,
    measure_whole,
)
from xmatch.evaluation.members import Member
from xmatch.evaluation.report import retrieval_figures
from xmatch.evaluation.similarities import EmbeddingSimilarities, MatrixSimilarities

GALLERY = small_gallery()
FAST = ConfidenceConfig(resamples=50)


def request(*, embedded: bool = True, seed: int = 0, **places: str) -> Request:
    images, texts = small_embeddings(seed=seed)
    across = EmbeddingSimilarities(images, texts)
    member = Member("embeddings", "x", across, (images, texts), {})
    if not embedded:
        member = Member("similarity", "x", MatrixSimilarities(images @ texts.T), None, {})
    return Request(GALLERY, [member], FAST, **places)


def check_law(found: Measured) -> None:
    """Figures lie in their intervals; recall grows with depth; tasks hold every query once."""
    for name, interval in found.intervals.items():
        assert isinstance(interval, Interval)
        assert interval.value == pytest.approx(found.figures[name])
        assert interval.low <= interval.value + 1e-9
        assert interval.high >= interval.value - 1e-9
    recalls = [name for name in found.figures if name.endswith("recall_at_1") and not name.startswith("eccv_i2")]
    for name in recalls:
        if f"{name}0" in found.figures:
            assert found.figures[name] <= found.figures[f"{name[:-1]}5"] <= found.figures[f"{name}0"]
    for task in found.tasks:
        assert len(task.counted.ranks) == len(task.fold) == (10 if task.name[0] == "i" else 50)


def test_whole_and_folds_are_those_of_the_protocols() -> None:
    whole, folds = measure_whole(request()), measure_folds(request())
    for found in (whole, folds):
        check_law(found)
        assert [task.name for task in found.tasks] == ["i2t", "t2i"]
        assert found.ties == {"i2t": 0, "t2i": 0}
    assert len(whole.parts) == 1
    assert [part.images.start for part in folds.parts] == [0, 2, 4, 6, 8]
    assert folds.figures["rsum"] > whole.figures["rsum"]  # a smaller gallery is easier
    each = [retrieval_figures(part.i2t.ranks, part.t2i.ranks)["rsum"] for part in folds.parts]
    assert folds.figures["rsum"] == pytest.approx(np.mean(each))


def test_matches_of_folds_are_rows_of_the_split() -> None:
    i2t, t2i = measure_folds(request()).tasks
    assert np.array_equal(GALLERY.caption_image[i2t.counted.best], np.arange(10))
    assert np.array_equal(t2i.counted.best, GALLERY.caption_image)
    assert i2t.fold.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_ties_are_counted_by_direction() -> None:
    constant = Member("similarity", "x", MatrixSimilarities(np.zeros((10, 50), np.float32)), None, {})
    found = measure_whole(Request(GALLERY, [constant], FAST))
    assert found.ties == {"i2t": 10, "t2i": 50}
    assert found.tasks[1].counted.ranks[:10].tolist() == [1] * 5 + [2] * 5  # equal scores in the order of the ids


def test_cxc_has_four_tasks_in_two_conventions_and_correlations(tmp_path: Path) -> None:
    found = measure_cxc(request(cxc=write_cxc(tmp_path, GALLERY)))
    check_law(found)
    assert [(task.name, task.convention) for task in found.tasks] == [
        (name, convention) for convention in ("vse_infty", "eccv_caption") for name in ("i2t", "t2i", "t2t", "i2i")
    ]
    assert set(found.hashes) == {"cxc/sits_test.csv", "cxc/sis_test.csv", "cxc/sts_test.csv"}
    for kind in ("sts", "sis", "sits"):
        assert -100 <= found.figures[f"{kind}_correlation"] <= 100
        assert found.figures[f"{kind}_correlation_deviation"] >= 0
    six = [found.figures[f"{way}_recall_at_{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert found.figures["rsum"] == pytest.approx(sum(six))
    assert not found.skipped


def test_a_saved_similarity_has_nothing_within_a_kind_and_says_so(tmp_path: Path) -> None:
    found = measure_cxc(request(embedded=False, cxc=write_cxc(tmp_path, GALLERY)))
    assert set(found.skipped) == {"t2t_recall", "i2i_recall", "sts_correlation", "sis_correlation"}
    assert "sits_correlation" in found.figures
    assert "t2t_recall_at_1" not in found.figures
    whole = measure_cxc(request(cxc=str(tmp_path)))
    assert {name: whole.figures[name] for name in found.figures} == pytest.approx(found.figures, abs=1e-9)


def test_cxc_without_its_folder_is_refused() -> None:
    with pytest.raises(InputError, match="give --cxc FOLDER"):
        measure_cxc(request())


def test_eccv_over_the_users_files(tmp_path: Path) -> None:
    folder = write_truth(tmp_path, GALLERY)
    found = measure_eccv(request(eccv=folder, pmrp=write_truth(tmp_path, GALLERY, "pm")))
    check_law(found)
    assert found.figures["pmrp_i2t"] == pytest.approx(found.figures["eccv_i2t_r_precision"])
    assert found.figures["pmrp_t2i"] == pytest.approx(found.figures["eccv_t2i_r_precision"])
    assert found.details["eccv"]["i2t"]["map_at_r"] * 100 == pytest.approx(found.figures["eccv_i2t_map_at_r"])
    assert "eccv_caption package" in found.skipped
    assert len(found.hashes) == 4
    assert set(measure_whole(request()).figures) < set(found.figures)


def test_perfect_scores_are_perfect_everywhere(tmp_path: Path) -> None:
    eye = np.eye(10, dtype=np.float32)
    images, texts = eye, eye[GALLERY.caption_image]
    member = Member("embeddings", "x", EmbeddingSimilarities(images, texts), (images, texts), {})
    found = measure_whole(Request(GALLERY, [member], FAST))
    assert found.figures["rsum"] == 600
    assert found.intervals["rsum"] == (600, 600, 600)


def test_a_package_that_disagrees_is_refused(tmp_path: Path) -> None:
    found = measures.eccv.PerQuery(np.array([1]), np.array([[0.5, 0.5, 1.0]]))
    same, other = measures.eccv.EccvFigures(0.5, 0.5, 1.0), measures.eccv.EccvFigures(0.5, 0.6, 1.0)
    assert measures._largest_difference({"i2t": found}, {"i2t": same}) == 0
    with pytest.raises(InputError, match="another ground truth or definition"):
        measures._largest_difference({"i2t": found}, {"i2t": other})


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"level": 1.0}])
def test_intervals_that_cannot_be_drawn_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="confidence needs"):
        ConfidenceConfig(**settings)
