from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.evaluation.similarities import (
    EmbeddingSimilarities,
    EnsembleSimilarities,
    MatrixSimilarities,
    PartSimilarities,
    WithDiagonal,
    open_similarities,
)


def whole(source) -> np.ndarray:
    return source.block(slice(0, source.shape[0]), slice(0, source.shape[1]))


@given(seed=st.integers(0, 99), top=st.integers(0, 5), left=st.integers(0, 8), value=st.sampled_from([0.0, -np.inf]))
def test_every_source_hands_out_rectangles_of_its_matrix(seed: int, top: int, left: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    images, texts = rng.standard_normal((6, 3), np.float32), rng.standard_normal((9, 3), np.float32)
    matrix = rng.standard_normal((6, 9))
    embedded = EmbeddingSimilarities(images, texts)
    cases = [
        (embedded, images @ texts.T),
        (MatrixSimilarities(matrix), matrix),
        (EnsembleSimilarities([embedded, MatrixSimilarities(matrix)]), (images @ texts.T + matrix) / 2),
        (WithDiagonal(MatrixSimilarities(matrix), value), np.where(np.eye(6, 9) > 0, value, matrix)),
    ]
    part = slice(top, 6), slice(left, 9)
    for source, expected in cases:
        assert source.shape == (6, 9)
        np.testing.assert_allclose(source.block(*part), expected[part], atol=1e-6)
        cut = PartSimilarities(source, *part)
        assert cut.shape == (6 - top, 9 - left)
        np.testing.assert_allclose(whole(cut), expected[part], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_saved_matrix_is_mapped_in_every_dtype_and_order(tmp_path: Path, dtype: str, order: str) -> None:
    matrix = np.asarray(np.random.default_rng(0).standard_normal((4, 20)), dtype, order=order)
    path = str(tmp_path / "scores.npy")
    np.save(path, matrix)
    source = open_similarities(path)
    assert source.mapping is not None
    assert not source.matrix.flags.owndata
    assert whole(source).dtype == (np.float64 if dtype == "float64" else np.float32)
    assert np.array_equal(whole(source), matrix)


def test_an_ensemble_of_one_is_that_one_and_of_equals_is_any_of_them() -> None:
    one = MatrixSimilarities(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    assert np.array_equal(whole(EnsembleSimilarities([one])), one.matrix)
    assert np.array_equal(whole(EnsembleSimilarities([one, one])), one.matrix)


def test_the_originals_results_are_refused_with_the_conversion_and_never_unpickled(tmp_path: Path) -> None:
    path = str(tmp_path / "results_coco.npy")
    np.save(path, {"npts": 2, "sims": np.ones((2, 10))}, allow_pickle=True)
    place = f"--output {tmp_path} --name results_coco_matrix.npy"
    command = f"python jobs/convert.py --what legacy --input {path} {place}"
    with pytest.raises(InputError, match=re.escape(command)):
        open_similarities(path)


def test_bad_files_and_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(InputError, match="does not exist"):
        open_similarities(str(path))
    with pytest.raises(InputError, match="local disk"):
        open_similarities("s3://bucket/x.npy")
    path.write_bytes(b"PK\3\4 not an array")
    with pytest.raises(InputError, match="not a saved similarity matrix"):
        open_similarities(str(path))
    np.save(path, np.ones((50, 50)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut short"):
        open_similarities(str(path))
    for wrong in (np.ones(5), np.ones((2, 2), int)):
        np.save(path, wrong)
        with pytest.raises(InputError, match="expected a matrix"):
            open_similarities(str(path))
    two, three = MatrixSimilarities(np.ones((2, 4))), MatrixSimilarities(np.ones((3, 4)))
    with pytest.raises(InputError, match=r"source 2 of the ensemble has the shape \(3, 4\)"):
        EnsembleSimilarities([two, two, three])
    with pytest.raises(InputError, match="at least one"):
        EnsembleSimilarities([])
    with pytest.raises(InputError, match="image embeddings are int64"):
        EmbeddingSimilarities(np.ones((2, 2), int), np.ones((2, 2)))


def test_a_score_that_is_no_number_is_named_by_row_and_column() -> None:
    matrix = np.zeros((5, 6))
    matrix[3, 4] = np.nan
    with pytest.raises(InputError, match="nan at row 3, column 4"):
        MatrixSimilarities(matrix).block(slice(2, 5), slice(1, 6))
