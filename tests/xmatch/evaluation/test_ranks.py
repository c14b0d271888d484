from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.errors import InputError
from xmatch.evaluation import ranks
from xmatch.evaluation.ranks import (
    MISSED,
    Positives,
    caption_ranks,
    image_to_text_ranks,
    ranks_of,
    recall_at_k,
    scores_at,
    text_to_image_ranks,
)
from xmatch.evaluation.similarities import EmbeddingSimilarities, EnsembleSimilarities, MatrixSimilarities

GOLDEN = Path(__file__).parents[2] / "golden" / "retrieval_eval.json"


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
def test_recall_never_falls_as_k_grows(found: list[int]) -> None:
    recalls = [recall_at_k(np.array(found), k) for k in range(1, 51)]
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


def sorted_best(scores: np.ndarray, positives: list[list[int]]) -> list[int]:
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        min(np.flatnonzero(np.isin(row, own))) + 1 if own else MISSED for row, own in zip(order, positives, strict=True)
    ]


def random_positives(rng: np.random.Generator, queries: int, candidates: int) -> list[list[int]]:
    return [
        rng.choice(candidates, rng.integers(0, min(4, candidates) + 1), replace=False).tolist() for _ in range(queries)
    ]


@pytest.mark.parametrize("tile", [(250, 1280), (3, 4), (1, 1)])
@given(seed=st.integers(0, 9999), rows=st.integers(1, 12), columns=st.integers(1, 15), levels=st.integers(1, 30))
def test_many_positives_and_any_tiling_equal_a_full_sort(tile, seed: int, rows: int, columns: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (rows, columns)).astype(np.float32)
    by_row, by_column = random_positives(rng, rows, columns), random_positives(rng, columns, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "TILE_ROWS", tile[0])
        patch.setattr(ranks, "TILE_COLUMNS", tile[1])
        patch.setattr(ranks, "KEPT_BYTES", 40)
        source = MatrixSimilarities(scores)
        found = ranks.count_ranks(source, Positives.from_lists(by_row), Positives.from_lists(by_column))
        alone = ranks.count_ranks(source, Positives.from_lists(by_row), Positives.none(columns))
    assert found[0].ranks.tolist() == sorted_best(scores, by_row)
    assert found[1].ranks.tolist() == sorted_best(scores.T, by_column)
    assert alone[0].ranks.tolist() == found[0].ranks.tolist()
    assert alone[0].best.tolist() == found[0].best.tolist()
    assert (alone[0].ties, alone[1].ties) == (found[0].ties, 0)
    for one, matrix, positives in ((found[0], scores, by_row), (found[1], scores.T, by_column)):
        tied = [
            own and (np.delete(row, own) == row[own].max()).any() for row, own in zip(matrix, positives, strict=True)
        ]
        assert one.ties == sum(map(bool, tied))


def test_more_rows_than_a_byte_counts_and_many_tiles() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((600, 4), np.float32), rng.standard_normal((3000, 4), np.float32)
    rows = rng.permutation(np.repeat(np.arange(600), 5))
    by_image, by_caption = caption_ranks(EmbeddingSimilarities(image, text), rows)
    scores = image @ text.T
    assert by_caption.ranks.tolist() == ranks_of(scores.T, rows).tolist()
    assert by_image.ranks.tolist() == sorted_best(scores, [np.flatnonzero(rows == i).tolist() for i in range(600)])
    assert by_caption.ranks.max() > 255
    assert by_image.ties == by_caption.ties == 0


def test_equal_embeddings_all_tie() -> None:
    by_image, by_caption = caption_ranks(
        EmbeddingSimilarities(np.ones((3, 2), np.float32), np.ones((6, 2), np.float32)), np.repeat(np.arange(3), 2)
    )
    assert by_image.ranks.tolist() == [1, 3, 5]
    assert by_caption.ranks.tolist() == [1, 1, 2, 2, 3, 3]
    assert (by_image.ties, by_caption.ties) == (3, 6)


@pytest.mark.parametrize("case", ["full_a", "full_b", "ensemble_full"])
def test_ranks_of_the_original_evaluation(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    a, b = (MatrixSimilarities(np.array(golden[name])) for name in ("sims_a", "sims_b"))
    source = {"full_a": a, "full_b": b, "ensemble_full": EnsembleSimilarities([a, b])}[case]
    by_image, by_caption = caption_ranks(source, np.repeat(np.arange(10), 5))
    assert (by_image.ranks - 1).tolist() == golden[case]["i2t_ranks"]
    assert (by_caption.ranks - 1).tolist() == golden[case]["t2i_ranks"]


def test_one_caption_an_image_as_the_original_evaluates_it() -> None:
    golden = json.loads(GOLDEN.read_text())["square_mode"]
    by_image, by_caption = caption_ranks(MatrixSimilarities(np.array(golden["sims"])), np.arange(8))
    assert (by_image.ranks - 1).tolist() == golden["i2t_ranks"]
    assert (by_caption.ranks - 1).tolist() == golden["t2i_ranks"]


def test_pair_scores_are_those_of_the_matrix() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 1500))
    rows, columns = np.array([299, 0, 0, 251]), np.array([1499, 0, 1281, 7])
    assert scores_at(MatrixSimilarities(matrix), rows, columns).tolist() == matrix[rows, columns].tolist()


def test_positives_are_sorted_and_counted_once() -> None:
    positives = Positives.from_lists([[3, 1, 3], [], [0]])
    assert positives.candidates.tolist() == [1, 3, 0]
    assert positives.counts.tolist() == [2, 0, 1]
    assert positives.queries.tolist() == [0, 0, 2]
    assert positives.part(1, 3).candidates.tolist() == [0]
    with pytest.raises(InputError, match="row query 0 has the positive 3"):
        ranks.count_ranks(MatrixSimilarities(np.ones((3, 3))), positives, Positives.none(3))
    with pytest.raises(InputError, match="2 row queries"):
        ranks.count_ranks(MatrixSimilarities(np.ones((3, 3))), Positives.none(2), Positives.none(3))


def test_both_directions_take_one_look_at_each_tile() -> None:
    seen = []

    class Watched(MatrixSimilarities):
        def block(self, rows: slice, columns: slice) -> np.ndarray:
            seen.append((rows.start, columns.start))
            return super().block(rows, columns)

    caption_ranks(Watched(np.random.default_rng(0).standard_normal((500, 2500))), np.repeat(np.arange(500), 5))
    assert sorted(seen) == [(0, 0), (0, 1280), (250, 0), (250, 1280)]
