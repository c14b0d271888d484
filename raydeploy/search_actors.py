"""A key bank that does not fit one worker: shards of it in actors of their own, searched as if it were one.

    clients (the workers that hold encoders)          actors
    ShardedSearcher.search(queries, k)   ──queries──▶  shard 0: replica 0, replica 1 …
        batch by batch, all shards at once             shard 1: replica 0, replica 1 …
        merge, exactly               ◀──ids, scores──  …

An actor that dies is started again by Ray, opens its shard, and answers what it was asked; with replicas, others answer
once it has died for good. A client has at most `IN_FLIGHT` batches under way, so the queues of the actors stay short.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from raydeploy.streams import find_input_error
from xmatch.errors import InputError
from xmatch.search.contract import TopK
from xmatch.search.exact import SearchResult, begin_search, merge_results
from xmatch.search.planner import BankShape, Layout, plan_layout, shard_rows

QUERY_BATCH = 4096
"""Queries sent to the shards at a time; the answer does not depend on it."""
IN_FLIGHT = 2
"""Batches of one client under way: one is searched while the next one travels."""
RESTARTS = 8
"""Times an actor is started again before it counts as dead for good."""
START_TIMEOUT_S = 900.0
"""For a cluster that must first grow."""
ANSWER_TIMEOUT_S = 3600.0
LATENCIES_KEPT = 10_000


class OpenShard(Protocol):
    """Opens rows of a bank for search, in the actor that will hold them; picklable."""

    def __call__(self, start: int, stop: int, threads: int) -> TopK:
        """A searcher over the rows start … stop - 1, whose ids count from the start of the bank."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchActorsConfig:
    """How a key bank lies on the cluster; the answers do not depend on it."""

    shards: int | None = None
    """Parts of the key bank; null: one, held by every worker, where it fits a worker, else the fewest that fit."""
    replicas: int = 1
    """Actors for each part; more than one makes actors of their own even for a whole bank."""
    memory_gb: float | None = None
    """Memory that one worker or actor may use, in GB; null: this machine's, shared by the workers."""
    gpus_per_actor: float = 0
    """GPUs, or a share of one, of each search actor; more than 0 makes actors of their own that search on the GPU."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        counts_fit = self.replicas >= 1 and (self.shards is None or self.shards >= 1)
        if not counts_fit or (self.memory_gb is not None and self.memory_gb <= 0) or self.gpus_per_actor < 0:
            raise InputError(
                f"search needs shards >= 1, replicas >= 1, memory_gb > 0 and gpus_per_actor >= 0; got {self.shards}, "
                f"{self.replicas}, {self.memory_gb}, {self.gpus_per_actor}."
            )

    def layout(self, shape: BankShape, backend: str, workers: int) -> Layout:
        """The layout of a bank of this shape for so many workers.

        Raises:
            InputError: there are more shards than keys.
        """
        memory = self.memory_gb * 1e9 if self.memory_gb else machine_memory() / workers
        found = plan_layout(shape, backend, memory, shards=self.shards, replicas=self.replicas)
        return found._replace(in_workers=found.in_workers and not self.gpus_per_actor)


def machine_memory() -> float:
    """Bytes of this machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


class ShardHealth(NamedTuple):
    """What an actor tells of itself.

    Attributes:
        shard: number of its shard.
        replica: number among the actors of that shard.
        pid: of its process.
        was_restarted: whether it has been started again.
        backend: of its search.
        queries: answered since it (last) started.
        latency_ms: median, 95th and 99th percentile of the milliseconds one batch took to search.
    """

    shard: int
    replica: int
    pid: int
    was_restarted: bool
    backend: str
    queries: int
    latency_ms: tuple[float, float, float]


class SearchShard:
    """One replica of one shard; becomes an actor in `search_actors`."""

    def __init__(self, open_shard: OpenShard, rows: tuple[int, int], place: tuple[int, int], threads: int) -> None:
        torch.set_num_threads(
            threads
        )  # Ray sets OMP_NUM_THREADS by the actor's CPUs, other libraries take it from there
        self.place, self.open_shard, self.rows, self.threads = place, open_shard, rows, threads
        self.searcher: TopK | None = None
        self.queries = 0
        self.seconds: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def search(self, queries: npt.NDArray[np.float32], k: int) -> SearchResult:
        """The k best of this shard's keys for queries (Q, D)."""
        searcher = self._opened()
        started = time.perf_counter()
        found = searcher.search(queries, k)
        self.seconds.append(time.perf_counter() - started)
        self.queries += len(queries)
        return found

    def health(self) -> ShardHealth:
        """How it has been doing.

        Raises:
            InputError: its shard cannot be opened.
        """
        backend = str(getattr(self._opened(), "backend", ""))
        marks = np.percentile(self.seconds, (50, 95, 99)) * 1e3 if self.seconds else np.zeros(3)
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        latency = (float(marks[0]), float(marks[1]), float(marks[2]))
        return ShardHealth(*self.place, os.getpid(), bool(restarted), backend, self.queries, latency)

    def _opened(self) -> TopK:
        """Not in the constructor: what goes wrong there reaches nobody as the error it is."""
        if self.searcher is None:
            self.searcher = self.open_shard(*self.rows, self.threads)
        return self.searcher


class _Sent(NamedTuple):
    """A question to one shard: where in the batch's list, whom it was put to, and the answer to come."""

    shard: int
    replica: int
    answer: Any


class _Batch(NamedTuple):
    """A batch of queries under way."""

    start: int
    stop: int
    queries: Any
    sent: list[_Sent]


class ShardedSearcher:
    """Exact search over the shards of a bank; the answer is that of one searcher over the whole bank, bit for bit.

    It can be sent to other actors: each copy is a client of its own.

    Args:
        actors: handles, by shard and replica.
        key_count: N.
        width: D.
    """

    def __init__(self, actors: Sequence[Sequence[Any]], key_count: int, width: int) -> None:
        self.actors, self.key_count, self.width = [list(replicas) for replicas in actors], key_count, width
        self._waiting = [[0] * len(replicas) for replicas in self.actors]
        self._dead = [[False] * len(replicas) for replicas in self.actors]

    def search(self, queries: npt.NDArray[np.floating], k: int) -> SearchResult:
        """The k best keys of every query.

        Args:
            queries: (Q, D) float32 or float16, finite.
            k: results per query, at least 1.

        Returns:
            Scores (Q, k) and ids (Q, k); where k exceeds the number of keys, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the queries are no matrix of this width.
            InputError: a query is not finite, a shard is gone for good, or does not answer.
        """
        rows, result = begin_search(queries, k, self.width)
        under_way: deque[_Batch] = deque()
        for start in range(0, len(rows), QUERY_BATCH):
            if len(under_way) == IN_FLIGHT:
                self._take(under_way.popleft(), k, result)
            stop = min(start + QUERY_BATCH, len(rows))
            batch = ray.put(rows[start:stop])
            sent = [self._send(shard, batch, k) for shard in range(len(self.actors))]
            under_way.append(_Batch(start, stop, batch, sent))
        while under_way:
            self._take(under_way.popleft(), k, result)
        return result

    def health(self) -> list[ShardHealth]:
        """Of every actor, by shard and replica.

        Raises:
            InputError: one does not answer.
        """
        answers = [actor.health.remote() for replicas in self.actors for actor in replicas]
        return [ShardHealth(*health) for health in _get(answers, START_TIMEOUT_S)]

    def _send(self, shard: int, batch: Any, k: int) -> _Sent:
        living = [r for r, dead in enumerate(self._dead[shard]) if not dead]
        if not living:
            raise InputError(
                f"search shard {shard} of {len(self.actors)} is gone: all {len(self._dead[shard])} actors that held it "
                f"died more than {RESTARTS} times, perhaps for want of memory. Give more shards, or actors with more "
                "memory, and run again; finished work is kept."
            )
        turn = os.getpid()  # clients begin with different replicas
        replica = min(living, key=lambda r: (self._waiting[shard][r], (r + turn) % len(self._dead[shard])))
        self._waiting[shard][replica] += 1
        return _Sent(shard, replica, self.actors[shard][replica].search.remote(batch, k))

    def _take(self, batch: _Batch, k: int, result: SearchResult) -> None:
        best = merge_results([self._answer(sent, batch.queries, k) for sent in batch.sent], k)
        result.scores[batch.start : batch.stop], result.ids[batch.start : batch.stop] = best.scores, best.ids

    def _answer(self, sent: _Sent, batch: Any, k: int) -> SearchResult:
        while True:
            try:
                found = SearchResult(*_get(sent.answer, ANSWER_TIMEOUT_S))
            except RayActorError:
                self._dead[sent.shard][sent.replica] = True
                sent = self._send(sent.shard, batch, k)
                continue
            self._waiting[sent.shard][sent.replica] -= 1
            return found


def _get(answers: Any, timeout_s: float) -> Any:
    try:
        return ray.get(answers, timeout=timeout_s)
    except GetTimeoutError as error:
        raise InputError(
            f"a search actor did not answer within {timeout_s:,.0f} s: the cluster may lack the CPUs or the memory to "
            "start it (see `ray status`), or it hangs. Give fewer shards or replicas, or a larger cluster."
        ) from error
    except RayTaskError as error:
        ours = find_input_error(error)
        if ours is None:
            raise
        raise InputError(str(ours)) from error


@contextmanager
def search_actors(
    open_shard: OpenShard,
    layout: Layout,
    *,
    key_count: int,
    width: int,
    threads: int,
    memory_bytes: int = 0,
    gpus: float = 0,
) -> Iterator[ShardedSearcher]:
    """Actors that hold a bank, for as long as the block runs.

    Args:
        open_shard: opens rows of the bank.
        layout: shards and replicas.
        key_count: N.
        width: D.
        threads: search threads, and CPUs, of each actor.
        memory_bytes: that each actor asks the cluster for; 0: none in particular.
        gpus: of each actor, or the share of one.

    Raises:
        InputError: they do not start, or a shard cannot be opened.
    """
    kind = ray.remote(SearchShard).options(
        num_cpus=cpus_of(threads),
        num_gpus=gpus or None,
        memory=memory_bytes or None,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    )
    actors = [
        [kind.remote(open_shard, rows, (shard, replica), threads) for replica in range(layout.replicas)]
        for shard, rows in enumerate(shard_rows(key_count, layout.shards))
    ]
    searcher = ShardedSearcher(actors, key_count, width)
    try:
        searcher.health()
        yield searcher
    finally:
        for actor in (actor for replicas in actors for actor in replicas):
            ray.kill(actor)


def cpus_of(threads: int) -> int:
    """CPUs that an actor with so many search threads asks for."""
    return threads


def health_rows(found: Sequence[ShardHealth]) -> list[tuple[str, str]]:
    """Rows of a report: a line for each actor."""
    return [
        (
            f"shard {h.shard}, replica {h.replica}",
            f"{h.backend}, {h.queries:,} queries; a batch took {h.latency_ms[0]:,.1f} ms (median), "
            f"{h.latency_ms[1]:,.1f} (95 %), {h.latency_ms[2]:,.1f} (99 %)"
            + ("; was restarted" if h.was_restarted else ""),
        )
        for h in found
    ]
