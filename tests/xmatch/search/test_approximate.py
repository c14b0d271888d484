"""Approximate search: what it finds is scored and ordered exactly, and how much it misses is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import exact_score, oracle, unit

from xmatch.errors import InputError
from xmatch.search import build_searcher
from xmatch.search.approximate import ApproximateSearcher, build_approximate, load_approximate
from xmatch.search.approximate_config import KINDS, ApproximateConfig, Kind, settle

BUILT: tuple[Kind, ...] = ("ivf", "hnsw")
FAST = ApproximateConfig(build_effort=20, search_effort=20)
EVERYTHING = ApproximateConfig(lists=2, probes=2, candidates_per_result=10_000)
WIDTH = 16


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """Rows in forty clusters, some of them equal."""
    rng = np.random.default_rng(seed)
    rows = unit(rng, 40, WIDTH)[rng.integers(0, 40, count)] + 0.1 * rng.standard_normal((count, WIDTH))
    rows[: count // 10] = rows[count // 2 : count // 2 + 1]
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def coded() -> tuple[np.ndarray, ApproximateSearcher]:
    """A bank large enough for a product quantiser, and its index."""
    keys = rows_of(10_000)
    return keys, build_approximate(keys, "ivfpq", ApproximateConfig(lists=16, train_keys=9984))


def check_exact(searcher: ApproximateSearcher, keys: np.ndarray, queries: np.ndarray, k: int, first_id: int = 0) -> int:
    """What was found is scored exactly, best first, equal scores by id, none twice; gives the number of results."""
    found = searcher.search(queries, k)
    assert (found.scores.shape, found.scores.dtype, found.ids.dtype) == ((len(queries), k), np.float32, np.int64)
    for query, scores, ids in zip(queries, found.scores, found.ids, strict=True):
        there = ids >= 0
        assert (np.diff(there.astype(int)) <= 0).all()
        assert np.isneginf(scores[~there]).all()
        rows = ids[there] - first_id
        assert scores[there].tolist() == [exact_score(query, keys[row]) for row in rows]
        ranked = list(zip((-scores[there]).tolist(), rows.tolist(), strict=True))
        assert ranked == sorted(set(ranked))
    return int((found.ids >= 0).sum())


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(BUILT),
    count=st.integers(40, 400),
    k=st.integers(1, 9),
    first_id=st.sampled_from([0, 2**31 - 5, 2**40]),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]),
    seed=st.integers(0, 99),
)
def test_results_are_scored_and_ordered_exactly(
    kind: Kind, count: int, k: int, first_id: int, dtype: np.dtype, seed: int
) -> None:
    keys = rows_of(count, seed).astype(dtype)
    searcher = build_approximate(keys, kind, FAST, first_id=first_id)
    assert searcher.key_count == count
    assert check_exact(searcher, keys.astype(np.float32), rows_of(5, seed + 1), k, first_id) > 0


def test_codes_are_scored_exactly_too(coded: tuple[np.ndarray, ApproximateSearcher]) -> None:
    keys, searcher = coded
    assert check_exact(searcher, keys, rows_of(20, 3), 5) == 100


def test_looking_everywhere_finds_everything() -> None:
    keys, queries = rows_of(500), rows_of(30, 1)
    found = build_approximate(keys, "ivf", EVERYTHING).search(queries, 12)
    scores, ids = oracle(queries, keys, 12)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("kind", BUILT)
def test_more_results_than_keys_end_in_nothing(kind: Kind) -> None:
    keys = rows_of(78)
    found = build_approximate(keys, kind, EVERYTHING).search(rows_of(4, 1), 100)
    assert (found.ids[:, 78:] == -1).all()
    assert np.isneginf(found.scores[:, 78:]).all()
    assert build_approximate(keys, kind, EVERYTHING).search(rows_of(0), 3).ids.shape == (0, 3)


@pytest.mark.parametrize("kind", BUILT)
def test_the_same_bank_gives_the_same_index(kind: Kind, tmp_path: Path) -> None:
    keys = rows_of(800)
    for name in "ab":
        build_approximate(keys, kind, FAST).save(str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    if kind == "ivf":
        build_approximate(keys, kind, ApproximateConfig(seed=1)).save(str(tmp_path / "c"))
        assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("kind", [*BUILT, "ivfpq"])
def test_a_saved_index_answers_as_before(
    kind: Kind, tmp_path: Path, coded: tuple[np.ndarray, ApproximateSearcher]
) -> None:
    keys, searcher = coded
    if kind != "ivfpq":
        keys = keys[:1000]
        searcher = build_approximate(keys, kind, FAST)
    path, queries = str(tmp_path / "index"), rows_of(30, 1)
    searcher.save(path)
    opened = load_approximate(path, keys, first_id=2**33)
    assert opened.config == searcher.config
    before, after = searcher.search(queries, 4).ids, opened.search(queries, 4).ids
    np.testing.assert_array_equal(after, np.where(before < 0, -1, before + 2**33))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index", "index.json"]


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    keys, path = rows_of(300), tmp_path / "index"
    build_approximate(keys, "ivf", FAST).save(str(path))
    others = keys.copy()
    others[0, 0] += 1
    for wrong in (others, keys[:299], keys[:, :8], keys.astype(np.float16)):
        with pytest.raises(InputError, match="was built from other keys"):
            load_approximate(str(path), wrong)
    with pytest.raises(InputError, match="cannot be read"):
        load_approximate(str(tmp_path / "none"), keys)
    facts = json.loads(path.with_suffix(".json").read_text()) | {"config": {"lists": 3, "colour": 1}}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="colour"):
        load_approximate(str(path), keys)
    build_approximate(keys, "ivf", FAST).save(str(path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="Build it again"):
        load_approximate(str(path), keys)
    with pytest.raises(InputError, match="cannot be written"):
        build_approximate(keys, "ivf", FAST).save(str(path / "below a file"))


@pytest.mark.parametrize(("kind", "count", "fewest"), [("ivf", 38, "39"), ("ivfpq", 9983, "9,984"), ("hnsw", 1, "2")])
def test_too_few_keys_are_refused(kind: Kind, count: int, fewest: str) -> None:
    with pytest.raises(InputError, match=f"needs at least {fewest} keys of width 1 or more, got {count:,}"):
        build_approximate(np.ones((count, 4), np.float32), kind)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("ivf", ApproximateConfig(lists=20), "20 lists want a sample of at least 780 keys"),
        ("ivf", ApproximateConfig(train_keys=401), "train_keys 401 of 400"),
        ("ivf", ApproximateConfig(probes=0), "must be 1 or more"),
        ("hnsw", ApproximateConfig(links=-1), "must be 1 or more"),
        ("ivf", ApproximateConfig(seed=-1), "the seed 0 or more"),
        ("cagra", ApproximateConfig(), "needs a GPU and a faiss built for it with cuVS"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: Kind, config: ApproximateConfig, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_approximate(rows_of(400), kind, config)
    with pytest.raises(InputError, match="does not divide the width of the keys, 16"):
        settle(ApproximateConfig(code_bytes=5), "ivfpq", 20_000, 16)


def test_bad_rows_and_names_are_refused() -> None:
    keys = rows_of(100)
    with pytest.raises(ValueError, match="choose one of ivf, ivfpq, hnsw, cagra"):
        build_approximate(keys, "annoy")  # type: ignore[arg-type]
    searcher = build_approximate(keys, "hnsw", FAST)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(keys, 0)
    with pytest.raises(ValueError, match=r"\(n, 16\), got shape \(1, 3\)"):
        searcher.search(np.ones((1, 3), np.float32), 1)
    keys[7, 1] = np.nan
    with pytest.raises(InputError, match="key 7 holds NaN"):
        build_approximate(keys, "ivf")
    assert get_args(Kind) == KINDS
    with pytest.raises(ValueError, match="unknown search backend"):
        build_searcher(keys, "ivf")


@settings(max_examples=200)
@given(count=st.integers(10_000, 10**10), width=st.sampled_from([1, 7, 64, 96, 512, 1000]), kind=st.sampled_from(KINDS))
def test_defaults_fit_every_bank(count: int, width: int, kind: Kind) -> None:
    config = settle(ApproximateConfig(), kind, count, width)
    assert config.lists is not None and config.probes is not None and config.train_keys is not None
    assert config.code_bytes is not None and width % config.code_bytes == 0
    assert 1 <= config.probes <= config.lists
    assert 39 * config.lists <= config.train_keys <= count
    assert settle(config, kind, count, width) == config
    if count >= 10**5:
        assert 2 * count**0.5 < config.lists < 8 * count**0.5
