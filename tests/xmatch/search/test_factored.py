from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, exact_score, make_keys, unit

from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import BFLOAT16, make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.search import build_searcher, factored_scan, merge_results
from xmatch.search.factored import FactoredVectors, Part, factor, open_factored, shared_from, write_factored
from xmatch.search.factored_scores import Lengths, Near, double_scores, still_near
from xmatch.search.factored_searcher import FactoredSearcher
from xmatch.search.grouped import search_views
from xmatch.search.scores import norms

DTYPES = (torch.bfloat16, torch.float32)


def fraction(left: np.ndarray, right: np.ndarray) -> Fraction:
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(left, right)), Fraction(0))


def oracle_scores(images: FactoredVectors, texts: np.ndarray) -> np.ndarray:
    """(N, T) by definition: of each part the best view, in fractions; the sum rounded once."""
    scores = np.empty((len(images), len(texts)), np.float32)
    for image, text in itertools.product(range(len(images)), range(len(texts))):
        best = []
        for part, columns in zip(images.parts, images.columns):
            views = part.rows[image * part.views : (image + 1) * part.views].astype(np.float32)
            best.append(max(views, key=lambda view: fraction(view, texts[text, columns])))
        scores[image, text] = exact_score(np.concatenate(best), texts[text]) + np.float32(0)
    return scores


def best_of(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of (Q, N) scores the best k and their columns, ties to the lowest; -inf and -1 beyond N."""
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :k]
    found = np.full((2, len(scores), k), -1.0)
    found[0] = -np.inf
    found[0, :, : order.shape[1]] = np.take_along_axis(scores, order, 1)
    found[1, :, : order.shape[1]] = order
    return found[0].astype(np.float32), found[1].astype(np.int64)


def small_images(rng: np.random.Generator, kind: str, count: int, shapes: list[tuple[int, int]]) -> FactoredVectors:
    return FactoredVectors(tuple(Part(make_keys(kind, rng, count * views, width), views) for views, width in shapes))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 12),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3),
    k=st.integers(1, 14),
    sizes=st.sampled_from([(4096, 1 << 23, 1 << 13), (3, 8, 1 << 13), (4, 64, -1000)]),
)
def test_both_directions_equal_the_definition(
    seed: int, kind: str, count: int, shapes: list[tuple[int, int]], k: int, sizes: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    images = small_images(rng, kind, count, shapes)
    texts = unit(rng, 7, images.width)
    texts[-1] = 0
    texts[0] = np.concatenate([part.rows[0] for part in images.parts])
    scores = oracle_scores(images, texts)
    for dtype in DTYPES:
        with pytest.MonkeyPatch.context() as patch:
            for name, size in zip(("TEXTS_AT_ONCE", "PRODUCTS", "MOST_CANDIDATES"), sizes):
                patch.setattr(factored_scan, name, size)
            searcher = FactoredSearcher(images, dtype=dtype)
            found = searcher.search_both(texts, k)
            alone = searcher.search(texts, k), searcher.search_texts(texts, k)
        for result, one, table in zip(found, alone, (scores.T, scores)):
            expected = best_of(table, k)
            np.testing.assert_array_equal(result.ids, expected[1])
            np.testing.assert_array_equal(result.scores, expected[0])
            np.testing.assert_array_equal(one.ids, result.ids)
            np.testing.assert_array_equal(one.scores, result.scores)
            assert not np.signbit(result.scores[result.scores == 0]).any()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([kind for kind in KINDS if kind not in ("tiny", "huge")]),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=2),
    are_short=st.booleans(),
)
def test_bounds_hold(seed: int, kind: str, shapes: list[tuple[int, int]], are_short: bool) -> None:
    rng = np.random.default_rng(seed)
    images = small_images(rng, kind, 9, shapes)
    texts = unit(rng, 8, images.width)
    if are_short:  # nothing is lost by rounding the vectors, so storing the products is what counts
        images = FactoredVectors(tuple(Part(part.rows.astype(BFLOAT16), part.views) for part in images.parts))
        texts = texts.astype(BFLOAT16).astype(np.float32)
    true = sum(
        np.einsum("nvd,td->tvn", part.rows.astype(np.float64).reshape(9, part.views, -1), texts[:, own]).max(1)
        for part, own in zip(images.parts, images.columns)
    )
    for dtype in DTYPES:
        known = [factored_scan.rounded(part.rows, dtype) for part in images.parts]
        asked = [factored_scan.asked_texts(texts[:, own], dtype) for own in images.columns]
        lower, upper = factored_scan.bounds(images, known, slice(2, 9), asked, dtype)
        assert (lower.numpy() <= true[:, 2:]).all()
        assert (upper.numpy() >= true[:, 2:]).all()


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("stored", [np.float32, np.float16, BFLOAT16])
def test_it_is_the_search_over_whole_vectors_in_groups(stored, noise: float) -> None:
    rng = np.random.default_rng(1)
    count, views, dim, shared = 300, 3, 16, 24
    views_of = unit(rng, 1, dim) + np.float32(noise) * unit(rng, count * views, dim)
    whole = np.concatenate([views_of, np.repeat(0.5 * unit(rng, count, shared), views, 0)], 1).astype(stored)
    if noise < 1:
        whole[:, dim:] = whole[:1, dim:]
    texts = np.ascontiguousarray(unit(rng, 60, dim + shared))
    images = factor(whole, views, dim)
    groups = np.repeat(np.arange(count), views)
    expected = build_searcher(whole, groups=groups).search(texts, 10)
    for dtype in DTYPES:
        searcher = FactoredSearcher(images, dtype=dtype)
        found = searcher.search(texts, 10)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert searcher.counts.queries == 60
        assert searcher.counts.fallbacks == 0
        assert searcher.counts.rescored >= 600
        if noise == 1:
            assert searcher.counts.rescored < 60 * count // 2  # the scan leaves most pairs out


@pytest.mark.parametrize("kind", ["ulps", "near", "duplicates", "offset"])
def test_scores_that_float32_sums_confuse_are_told_apart(kind: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(4):
        own, shared = make_keys(kind, rng, 160, 60), make_keys(kind, rng, 80, 30)
        whole = np.concatenate([own, np.repeat(shared, 2, 0)], 1)
        texts = np.ascontiguousarray(make_keys(kind, rng, 90, 90))
        expected = build_searcher(whole, groups=np.repeat(np.arange(80), 2)).search(texts, 5)
        back = search_views(build_searcher(texts), whole.reshape(80, 2, 90), 5)
        for dtype in DTYPES:
            found = FactoredSearcher(factor(whole, 2, 60), dtype=dtype).search_both(texts, 5)
            for result, same in ((found.texts, expected), (found.images, back)):
                np.testing.assert_array_equal(result.ids, same.ids)
                np.testing.assert_array_equal(result.scores, same.scores)


@pytest.mark.parametrize("kind", ["ulps", "near", "random"])
def test_float32_products_exclude_none_of_the_best(kind: str) -> None:
    rng = np.random.default_rng(8)
    count, k = 80, 5
    images = small_images(rng, kind, count, [(2, 300), (1, 100)])
    texts = np.ascontiguousarray(make_keys(kind, rng, 30, 400))
    lengths = Lengths(
        tuple(norms(part.rows) for part in images.parts), tuple(norms(texts[:, own]) for own in images.columns)
    )
    true = double_scores(images, slice(0, count), texts, lengths, slice(0, 30)).sums.T  # (30, 80), off by 1e-13
    queries, items = (one.reshape(-1) for one in np.indices(true.shape))
    kept = still_near(images, texts, lengths, (items, queries), queries, Near(k, 0.0)).reshape(true.shape)
    kth = np.sort(true, axis=1)[:, -k, None]
    assert kept[true >= kth].all()
    assert kind != "random" or kept.sum() < 1.2 * k * 30


def test_the_bank_is_read_where_it_lies() -> None:
    rng = np.random.default_rng(2)
    whole = np.concatenate([unit(rng, 20, 4), np.repeat(unit(rng, 10, 6), 2, 0)], 1)
    whole.flags.writeable = False
    images = factor(whole, 2, 4)
    assert all(np.shares_memory(part.rows, whole) for part in images.parts)
    texts = unit(rng, 5, 10)
    compact = FactoredVectors(tuple(Part(np.ascontiguousarray(part.rows), part.views) for part in images.parts))
    found, same = (FactoredSearcher(one).search(texts, 3) for one in (images, compact))
    np.testing.assert_array_equal(found.ids, same.ids)
    np.testing.assert_array_equal(found.scores, same.scores)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_change_nothing(shards: int) -> None:
    rng = np.random.default_rng(6)
    images = small_images(rng, "duplicates", 40, [(3, 5), (1, 4)])
    texts, cuts = unit(rng, 12, 9), np.linspace(0, 40, shards + 1).astype(int).tolist()
    whole = FactoredSearcher(images, first_id=7).search_both(texts, 6)
    parts = [
        FactoredSearcher(images.images(slice(a, b)), first_id=7 + a).search_both(texts, 6)
        for a, b in itertools.pairwise(cuts)
    ]
    merged = merge_results([part.texts for part in parts[::-1]], 6)
    np.testing.assert_array_equal(merged.ids, whole.texts.ids)
    np.testing.assert_array_equal(merged.scores, whole.texts.scores)
    np.testing.assert_array_equal(np.concatenate([part.images.ids for part in parts]), whole.images.ids)


def test_many_ties_fall_back_and_stay_exact() -> None:
    rng = np.random.default_rng(3)
    images = FactoredVectors((Part(np.repeat(unit(rng, 2, 5), 300, 0), 2), Part(np.zeros((300, 3), np.float32), 1)))
    texts = unit(rng, 3, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored_scan, "MOST_CANDIDATES", 20)
        searcher = FactoredSearcher(images)
        found = searcher.search(texts, 4)
    assert searcher.counts.fallbacks == 3
    scores = oracle_scores(images, texts)
    np.testing.assert_array_equal(found.ids, best_of(scores.T, 4)[1])


def test_a_column_that_is_not_shared_is_named() -> None:
    whole = np.ones((6, 5), np.float32)
    whole[:, 0] = np.arange(6)
    assert shared_from(whole, 2) == 1
    assert [part.rows.shape for part in factor(whole, 2, 1).parts] == [(6, 1), (3, 4)]
    whole[3, 3] = 2
    assert shared_from(whole, 2) == 4
    with pytest.raises(InputError, match="view 1 of image 1 differs from view 0 in column 3, but columns from 2 on"):
        factor(whole, 2, 2)
    assert len(factor(whole, 2, 5).parts) == 1
    assert shared_from(whole, 1) == 5
    for views, dim in ((4, 1), (2, 0), (2, 6)):
        with pytest.raises(ValueError, match="expected \\(N V, E\\)"):
            factor(whole, views, dim)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), views=st.integers(2, 4), dim=st.integers(1, 5), shared=st.integers(1, 5))
def test_shared_columns_are_found(seed: int, views: int, dim: int, shared: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([unit(rng, 5 * views, dim), np.repeat(unit(rng, 5, shared), views, 0)], 1)
    rows[:, :dim] += np.arange(5 * views)[:, None]
    assert shared_from(rows, views) == dim


def bank_of(folder: Path, whole: np.ndarray, groups: list[str]) -> str:
    counts = {name: itertools.count() for name in groups}
    ids = [f"{name}#v{next(counts[name]):02d}" for name in groups]
    write_vectors(str(folder / "whole.arrow"), make_vectors(ids, whole, groups=groups))
    return str(folder / "whole.arrow")


@pytest.mark.parametrize("stored", [np.float32, BFLOAT16])
def test_a_bank_is_written_as_two_and_opened_again(tmp_path: Path, stored) -> None:
    rng = np.random.default_rng(4)
    whole = np.concatenate([unit(rng, 21, 4), np.repeat(unit(rng, 7, 6), 3, 0)], 1).astype(stored)
    names = [f"set/{name}" for name in "abcdefg"]
    path = bank_of(tmp_path, whole, [name for name in names for _ in range(3)])
    write_factored(open_key_bank(path), 4, str(tmp_path / "two"), images_per_shard=3)
    bank = open_factored(str(tmp_path / "two"))
    assert bank.ids.to_pylist() == names
    assert [part.rows.shape for part in bank.vectors.parts] == [(21, 4), (7, 6)]
    assert bank.vectors.parts[0].rows.dtype == stored
    texts = unit(rng, 5, 10)
    np.testing.assert_array_equal(
        FactoredSearcher(bank.vectors).search(texts, 4).ids, FactoredSearcher(factor(whole, 3, 4)).search(texts, 4).ids
    )


def test_banks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    whole = np.concatenate([unit(rng, 6, 2), np.repeat(unit(rng, 3, 2), 2, 0)], 1)
    for groups, message in (
        (["a", "a", "b", "b", "b", "c"], "image 'b' has 3, the first has 2"),
        (["a", "b", "a", "b", "c", "c"], "rows of an image lie apart"),
    ):
        with pytest.raises(InputError, match=message):
            write_factored(open_key_bank(bank_of(tmp_path, whole, groups)), 2, str(tmp_path / "no"))
    path = bank_of(tmp_path, whole, ["a", "a", "b", "b", "c", "c"])
    with pytest.raises(InputError, match="expected dim from 1 to 3, got 4"):
        write_factored(open_key_bank(path), 4, str(tmp_path / "no"))
    write_factored(open_key_bank(path), 2, str(tmp_path / "two"))
    shared = tmp_path / "two" / "shared" / "part-00000.arrow"
    write_vectors(str(shared), make_vectors(["a", "c", "b"], np.zeros((3, 2), np.float32)))
    with pytest.raises(InputError, match="not of the same images in the same order"):
        open_factored(str(tmp_path / "two"))


def test_what_cannot_be_searched_is_refused() -> None:
    rows = np.ones((6, 3), np.float32)
    rows[3, 1] = np.nan
    with pytest.raises(InputError, match="view 1 of image 1 holds NaN"):
        FactoredSearcher(FactoredVectors((Part(rows, 2),)))
    for parts in ((Part(np.ones((5, 3), np.float32), 2), Part(np.ones((2, 1), np.float32), 1)), (Part(rows, 0),)):
        with pytest.raises(ValueError, match="expected parts"):
            FactoredVectors(parts)
    searcher = FactoredSearcher(FactoredVectors((Part(np.ones((6, 3), np.float32), 2),)))
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(np.ones((1, 3), np.float32), 0)
    with pytest.raises(InputError, match="query 0 holds"):
        searcher.search_texts(np.full((1, 3), np.inf, np.float32), 1)


def test_no_images_and_no_texts_are_defined() -> None:
    none = FactoredSearcher(FactoredVectors((Part(np.zeros((0, 3), np.float32), 2),)))
    assert none.search(np.ones((2, 3), np.float32), 2).ids.tolist() == [[-1, -1], [-1, -1]]
    some = FactoredSearcher(FactoredVectors((Part(np.ones((4, 3), np.float32), 2),)))
    assert some.search(np.zeros((0, 3), np.float32), 2).ids.shape == (0, 2)
    assert some.search_texts(np.zeros((0, 3), np.float32), 1).ids.tolist() == [[-1], [-1]]
