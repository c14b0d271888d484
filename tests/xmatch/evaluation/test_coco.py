from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xmatch.errors import InputError
from xmatch.evaluation.coco import five_folds, whole_split
from xmatch.evaluation.similarities import EnsembleSimilarities, MatrixSimilarities

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "retrieval_eval.json").read_text())
OWNERS = np.repeat(np.arange(10), 5)
A, B = (MatrixSimilarities(np.array(GOLDEN[name])) for name in ("sims_a", "sims_b"))


def row(figures: dict[str, float]) -> list[float]:
    """A golden row: five figures of either direction, the mean recall of either, rsum."""
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")
    sides = [[figures[f"{way}_{name}"] for name in names] for way in ("i2t", "t2i")]
    return [*sides[0], *sides[1], sum(sides[0][:3]) / 3, sum(sides[1][:3]) / 3, figures["rsum"]]


def test_one_fold_is_the_whole_split() -> None:
    assert five_folds(A, OWNERS, folds=1).figures == whole_split(A, OWNERS).figures


def test_folds_are_independent_of_scores_between_them() -> None:
    matrix = np.array(GOLDEN["sims_a"])
    inside = np.repeat(np.arange(5), 2)[:, None] == np.repeat(np.arange(5), 10)
    elsewhere = MatrixSimilarities(np.where(inside, matrix, 99.0))
    assert five_folds(elsewhere, OWNERS).figures == five_folds(A, OWNERS).figures


@pytest.mark.parametrize(
    ("case", "source"), [("full_a", A), ("full_b", B), ("ensemble_full", EnsembleSimilarities([A, B]))]
)
def test_the_whole_split_as_the_original_evaluates_it(case: str, source) -> None:
    golden, found = GOLDEN[case], whole_split(source, OWNERS)
    assert row(found.figures)[:10] == pytest.approx([*golden["i2t"], *golden["t2i"]], abs=1e-9)
    assert found.figures["rsum"] == pytest.approx(golden["rsum"], abs=1e-9)
    assert found.ties == 0


@pytest.mark.parametrize(("case", "source"), [("fold5_a", A), ("ensemble_fold5", EnsembleSimilarities([A, B]))])
def test_five_folds_as_the_original_evaluates_them(case: str, source) -> None:
    found = five_folds(source, OWNERS)
    assert row(found.figures) == pytest.approx(GOLDEN[case]["mean"], abs=1e-9)
    for (images, captions), golden in zip(found.parts, GOLDEN[case]["per_fold"], strict=True):
        assert (images.ranks.mean(), captions.ranks.mean()) == pytest.approx((golden[4], golden[9]))
    assert [owners.tolist() for owners in found.caption_images] == [[0] * 5 + [1] * 5] * 5


def test_splits_that_have_no_folds_are_refused() -> None:
    with pytest.raises(InputError, match="10 images do not make 3 equal folds"):
        five_folds(A, OWNERS, folds=3)
    with pytest.raises(InputError, match="caption 49 belongs to image 0"):
        five_folds(A, np.concatenate([OWNERS[1:], [0]]))
