from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import exact_score

from xmatch.data.key_banks import open_key_bank
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.errors import InputError
from xmatch.search import build_searcher
from xmatch.search.grouped import grouped_searcher, groups_of, require_no_views, search_views
from xmatch.search.open_bank import OpenBank, bank_shape


def bank_of(folder: Path, vectors: np.ndarray, groups: list[str | None]) -> str:
    path = str(folder / "bank.arrow")
    write_vectors(path, make_vectors([f"r{row}" for row in range(len(vectors))], vectors, groups=groups))
    return path


def best_groups(scores: np.ndarray, groups: np.ndarray, k: int) -> list[tuple[float, int]]:
    best = {int(group): float(max(scores[groups == group])) for group in set(groups.tolist())}
    return sorted(((score, group) for group, score in best.items()), key=lambda one: (-one[0], one[1]))[:k]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    kinds=st.integers(1, 20),
    k=st.integers(1, 9),
    is_whole=st.booleans(),
)
def test_groups_of_a_bank_are_ranked_by_their_best_row(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, kinds: int, k: int, is_whole: bool
) -> None:
    rng = np.random.default_rng(seed)
    keys, queries = (
        (rng.integers(-1, 2, (n, 5)) if is_whole else rng.standard_normal((n, 5))).astype(np.float32)
        for n in (count, 6)
    )
    names: list[str | None] = [f"g{number}" if number else None for number in rng.integers(0, kinds, count)]
    bank = open_key_bank(bank_of(tmp_path_factory.mktemp("bank"), keys, names))
    groups = groups_of(bank.info)
    own = [name or f"r{row}" for row, name in enumerate(names)]
    assert [groups.name(number) for number in groups.of_rows] == own
    assert groups.names.to_pylist() == list(dict.fromkeys(own))  # numbered by their first rows
    found = grouped_searcher(bank).search(queries, k)
    for row, query in enumerate(queries):
        scores = np.array([exact_score(query, key) for key in keys])
        best = best_groups(scores, groups.of_rows, k)
        assert found.ids[row, : len(best)].tolist() == [group for _, group in best]
        assert found.scores[row, : len(best)].tolist() == [score for score, _ in best]
        assert (found.ids[row, len(best) :] == -1).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), views=st.integers(1, 4), k=st.integers(1, 9))
def test_queries_of_several_vectors_find_their_best(seed: int, count: int, views: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-1, 2, (count, 4)).astype(np.float32)  # many ties
    queries = rng.integers(-1, 2, (5, views, 4)).astype(np.float32)
    groups = rng.integers(0, 7, count).astype(np.int64)
    scores = (queries @ keys.T).max(1)
    for of_keys, searcher in (
        (np.arange(count), build_searcher(keys)),
        (groups, build_searcher(keys, groups=groups)),
    ):
        found = search_views(searcher, queries, k)
        for row in range(5):
            best = best_groups(scores[row], of_keys, k)
            assert found.ids[row, : len(best)].tolist() == [item for _, item in best]
            assert found.scores[row, : len(best)].tolist() == [score for score, _ in best]


def test_a_bank_without_groups_has_rows_of_their_own() -> None:
    for info in (
        pa.table({"id": ["a", "b"]}),
        pa.table({"id": ["a", "b"], "group": pa.nulls(2, pa.string())}),
        pa.table({"id": pa.chunked_array([["a"], ["b"]])}),
    ):
        groups = groups_of(info)
        assert groups.of_rows.tolist() == [0, 1]
        assert not groups.have_views
        assert groups.are_side_by_side
        assert groups.sizes.tolist() == [1, 1]
    apart = groups_of(pa.table({"id": ["a", "b", "c"], "group": ["x", "y", "x"]}))
    assert apart.sizes.tolist() == [2, 1]
    assert not apart.are_side_by_side


def test_vokens_are_not_made_of_views(tmp_path: Path) -> None:
    path = bank_of(tmp_path, np.eye(3, dtype=np.float32), ["x", "x", None])
    message = r"has 3 vectors of 2 images, such as 2 of 'x': a voken is the number of a row"
    for refused in (lambda: bank_shape(path), lambda: OpenBank(path)(0, 3, 1), lambda: OpenBank(path).exact(1)):
        with pytest.raises(InputError, match=message):
            refused()
    single = bank_of(tmp_path, np.eye(3, dtype=np.float32), ["x", "y", None])
    require_no_views(open_key_bank(single), "no")
    assert OpenBank(single)(0, 3, 1).key_count == 3


def test_queries_that_are_none_are_refused() -> None:
    searcher = build_searcher(np.ones((2, 3), np.float32))
    for shape in ((2, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match="expected queries"):
            search_views(searcher, np.ones(shape, np.float32), 1)
