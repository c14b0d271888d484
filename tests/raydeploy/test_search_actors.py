from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from toy_shards import OpenBroken, OpenDoomed, OpenToy, toy_bank, toy_queries

from raydeploy import search_actors as actors_module
from raydeploy.search_actors import SearchActorsConfig, health_rows, search_actors
from xmatch.errors import InputError
from xmatch.search import build_searcher
from xmatch.search.planner import BankShape, Layout

pytestmark = pytest.mark.ray


def layout(shards: int, replicas: int = 1) -> Layout:
    return Layout("torch", shards, replicas, 0, in_workers=False)


def whole(queries: np.ndarray, k: int, keys: int = 700):
    return build_searcher(toy_bank(keys), "torch").search(queries, k)


def assert_equal(found, expected) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores.view(np.int32), expected.scores.view(np.int32))


@pytest.fixture(autouse=True)
def _free_cpus(monkeypatch) -> None:
    """The tests' small Ray has few CPUs; the actors need none of their own to be right."""
    monkeypatch.setattr(actors_module, "cpus_of", lambda threads: 0)


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_answer_what_the_whole_bank_answers(ray_here, shards: int, monkeypatch) -> None:
    monkeypatch.setattr(actors_module, "QUERY_BATCH", 16)  # many batches, the last one smaller
    queries = toy_queries(105)
    with search_actors(OpenToy(), layout(shards), key_count=700, width=24, threads=1) as searcher:
        for k in (1, 10):
            assert_equal(searcher.search(queries, k), whole(queries, k))
        assert_equal(searcher.search(queries[:0], 2), whole(queries[:0], 2))
        health = searcher.health()
    assert [h.queries for h in health] == [210] * shards
    assert "210 queries" in health_rows(health)[0][1]


def test_a_gpu_for_the_search_takes_it_out_of_the_workers() -> None:
    shape = BankShape(100, 8, 4)
    assert not SearchActorsConfig().layout(shape, "torch", 2).has_search_actors
    assert SearchActorsConfig(gpus_per_actor=0.5).layout(shape, "torch", 2).has_search_actors
    assert SearchActorsConfig(memory_gb=1e-6).layout(shape, "torch", 2).shards == 8
    with pytest.raises(InputError, match="gpus_per_actor >= 0; got None, 1, None, -1"):
        SearchActorsConfig(gpus_per_actor=-1)


@pytest.mark.slow
@pytest.mark.parametrize("shards", range(1, 8))
def test_one_to_seven_shards_are_bit_for_bit_one(ray_here, shards: int) -> None:
    queries = toy_queries(40)
    with search_actors(OpenToy(keys=29), layout(shards), key_count=29, width=24, threads=1) as searcher:
        for k in (1, 7, 29, 40):
            assert_equal(searcher.search(queries, k), whole(queries, k, 29))


def test_replicas_share_the_work(ray_here, monkeypatch) -> None:
    monkeypatch.setattr(actors_module, "QUERY_BATCH", 8)
    queries = toy_queries(64)
    with search_actors(OpenToy(), layout(1, 2), key_count=700, width=24, threads=1) as searcher:
        assert_equal(searcher.search(queries, 3), whole(queries, 3))
        assert all(h.queries == 32 for h in searcher.health())


@pytest.mark.slow
def test_a_shard_that_dies_in_the_middle_of_a_search_answers_after_all(ray_here, tmp_path) -> None:
    opener = OpenDoomed(str(tmp_path / "flag"))
    with search_actors(opener, layout(2), key_count=700, width=24, threads=1) as searcher:
        assert_equal(searcher.search(toy_queries(50), 4), whole(toy_queries(50), 4))
        assert [h.was_restarted for h in searcher.health()] == [True, False]
    assert (tmp_path / "flag").exists()


@pytest.mark.slow
def test_100_000_queries_survive_kill_minus_nine(ray_here) -> None:
    queries = toy_queries(100_000)
    with search_actors(OpenToy(keys=20_000), layout(2), key_count=20_000, width=24, threads=1) as searcher:
        victim = searcher.health()[1]
        found: list = []
        search = threading.Thread(target=lambda: found.append(searcher.search(queries, 3)))
        search.start()
        time.sleep(0.2)
        assert search.is_alive(), "the search was over before the kill"
        os.kill(victim.pid, signal.SIGKILL)
        search.join(400)
        assert found, "the search hangs"
        assert searcher.health()[1].was_restarted
    assert_equal(found[0], whole(queries, 3, 20_000))


@pytest.mark.slow
def test_a_shard_that_is_gone_for_good_is_named(ray_here, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(actors_module, "RESTARTS", 1)
    opener = OpenDoomed(str(tmp_path / "flag"), always=True)
    with (
        search_actors(opener, layout(2), key_count=700, width=24, threads=1) as searcher,
        pytest.raises(InputError, match="search shard 0 of 2 is gone.*more shards"),
    ):
        searcher.search(toy_queries(5), 1)


def test_bad_input_is_told_as_it_is(ray_here) -> None:
    with (
        pytest.raises(InputError, match="^the bank is broken at row 3$"),
        search_actors(OpenBroken(), layout(1), key_count=700, width=24, threads=1),
    ):
        raise AssertionError("not reached")
    searcher = actors_module.ShardedSearcher([[None]], 10, 24)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        searcher.search(toy_queries(2), 0)
    with pytest.raises(ValueError, match="expected query rows"):
        searcher.search(toy_queries(2)[:, :3], 1)
    with pytest.raises(InputError, match="query 1 holds NaN"):
        searcher.search(np.array([[0] * 24, [np.nan] * 24], np.float32), 1)
