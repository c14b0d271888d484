"""How many workers an elastic group starts with, from what the cluster says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision

from raydeploy import elastic
from raydeploy.elastic import PlaceableWorkers, count_nodes
from raydeploy.training import TrainerConfig
from xmatch.errors import InputError

AMOUNTS = st.integers(0, 6).map(float)
NODES = st.lists(st.fixed_dictionaries({}, optional={"CPU": AMOUNTS, "GPU": AMOUNTS}), max_size=6)


@given(NODES, st.fixed_dictionaries({"CPU": st.integers(1, 3)}, optional={"GPU": st.just(1)}), st.integers(1, 5))
def test_a_node_counts_once_whatever_its_size(nodes, worker, most) -> None:
    counted = count_nodes(nodes, worker, most)
    placeable = sum(all(there.get(name, 0) >= amount for name, amount in worker.items()) for there in nodes)
    assert counted == min(placeable, most)
    assert counted == count_nodes([*nodes, {}], worker, most)
    assert count_nodes([*nodes, *nodes], worker, most) == min(2 * placeable, most)


class Cluster:
    """Nodes by name: their cores, and whether they live; and what Ray believes to have reserved."""

    def __init__(self, monkeypatch, nodes: dict[str, tuple[int, bool]], reserved: dict[str, int]) -> None:
        listed = [{"NodeID": n, "Resources": {"CPU": c}, "Alive": alive} for n, (c, alive) in nodes.items()]
        monkeypatch.setattr(elastic.ray, "nodes", lambda: listed)
        monkeypatch.setattr(PlaceableWorkers, "_maybe_send_resource_request", lambda self: None)
        believed = {node: {"CPU": float(cores)} for node, cores in reserved.items()}
        monkeypatch.setattr(PlaceableWorkers, "_get_reserved_resources", lambda self: believed)


def policy(strategy: str, fewest: int = 1, most: int = 2) -> PlaceableWorkers:
    return PlaceableWorkers(
        ScalingConfig(num_workers=(fewest, most), resources_per_worker={"CPU": 1}, placement_strategy=strategy)
    )


@pytest.mark.parametrize(
    ("strategy", "nodes", "reserved", "workers"),
    [
        ("STRICT_SPREAD", {"a": (4, True)}, {"a": 2}, 1),  # Ray counts two, and waits for ever
        ("STRICT_SPREAD", {"a": (4, True), "b": (4, True)}, {"a": 2}, 2),  # Ray packs them, and starts one
        ("STRICT_SPREAD", {"a": (4, True), "b": (4, False)}, {"a": 1, "b": 1}, 1),
        ("STRICT_SPREAD", {"head": (0, True), "a": (4, True)}, {"a": 2}, 1),
        ("PACK", {"a": (4, True)}, {"a": 2}, 2),
        ("PACK", {"a": (1, True), "b": (4, False)}, {"a": 1, "b": 1}, 1),  # the dead node is still reserved
        ("SPREAD", {"a": (2, True), "b": (2, True)}, {"a": 1, "b": 1}, 2),
    ],
)
def test_only_what_living_nodes_have_room_for_is_started(monkeypatch, strategy, nodes, reserved, workers) -> None:
    Cluster(monkeypatch, nodes, reserved)
    assert policy(strategy).make_decision_for_non_running_worker_group().num_workers == workers


def test_a_group_that_cannot_start_is_tried_smaller_until_one_runs(monkeypatch) -> None:
    Cluster(monkeypatch, {name: (1, True) for name in "abcd"}, dict.fromkeys("abcd", 1))
    one = policy("STRICT_SPREAD", fewest=2, most=4)

    def started() -> int:
        return one.make_decision_for_non_running_worker_group().num_workers

    assert [started() for _ in range(5)] == [4, 3, 2, 2, 2]
    monkeypatch.setattr(elastic.ElasticScalingPolicy, "make_decision_for_running_worker_group", lambda *_: None)
    one.make_decision_for_running_worker_group(None, None)
    assert [started(), started()] == [4, 3]


def test_too_few_nodes_are_waited_for(monkeypatch) -> None:
    Cluster(monkeypatch, {"a": (4, True)}, {"a": 2})
    one = policy("STRICT_SPREAD", fewest=2)
    assert isinstance(one.make_decision_for_non_running_worker_group(), NoopDecision)


@pytest.mark.parametrize("fewest", [-1, 3])
def test_a_number_of_workers_that_cannot_be_is_refused(fewest: int) -> None:
    with pytest.raises(InputError, match=f"trainer.min_workers is {fewest}.*2"):
        TrainerConfig(workers=2, min_workers=fewest)
