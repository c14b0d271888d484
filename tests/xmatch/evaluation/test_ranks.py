from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.evaluation.ranks import image_to_text_ranks, ranks_of, recall_at_k, text_to_image_ranks


def test_a_matrix_read_by_eye() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.1, 0.3, 0.3]])
    assert ranks_of(scores, np.array([0, 1, 2])).tolist() == [1, 2, 2]


@given(seed=st.integers(0, 999), images=st.integers(1, 9), extra=st.integers(0, 12), coarse=st.booleans())
def test_ranks_equal_a_full_sort_with_ties_to_the_lowest_row(seed: int, images: int, extra: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([np.arange(images), rng.integers(0, images, extra)])
    make = (lambda n: rng.integers(-1, 2, (n, 3))) if coarse else (lambda n: rng.standard_normal((n, 3)))
    image, text = make(images).astype(np.float32), make(len(rows)).astype(np.float32)
    scores = image @ text.T
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [min(np.flatnonzero(rows[order[i]] == i)) + 1 for i in range(images)]
    assert image_to_text_ranks(image, text, rows).tolist() == expected
    order = np.argsort(-scores.T, axis=1, kind="stable")
    expected = [int(np.flatnonzero(order[j] == rows[j])[0]) + 1 for j in range(len(rows))]
    assert text_to_image_ranks(image, text, rows).tolist() == expected


@given(st.lists(st.integers(1, 50), min_size=1))
def test_recall_never_falls_as_k_grows(ranks: list[int]) -> None:
    recalls = [recall_at_k(np.array(ranks), k) for k in range(1, 51)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 100.0


def test_bad_input_is_named() -> None:
    one = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="image 1 has no caption"):
        image_to_text_ranks(one, one, np.array([0, 0]))
    with pytest.raises(InputError, match="one width"):
        text_to_image_ranks(one, np.ones((2, 4), np.float32), np.array([0, 1]))
    with pytest.raises(InputError, match="one of 2 images"):
        text_to_image_ranks(one, one, np.array([0, 2]))
    broken = one.copy()
    broken[1, 0] = np.nan
    with pytest.raises(InputError, match="text embedding 1"):
        text_to_image_ranks(one, broken, np.array([0, 1]))
