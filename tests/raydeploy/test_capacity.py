"""Requests on groups: laws of the packing, then the refusals that name the nearest group."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydeploy.capacity import Group, Request, fits, lacking, nearest_group, pack

CPU = Group("cpu", {"CPU": 16, "memory": 22e9}, 8)
GPU = Group("gpu", {"CPU": 8, "GPU": 1, "memory": 22e9}, 4)

amounts = st.fixed_dictionaries(
    {}, optional={"CPU": st.integers(1, 8), "GPU": st.sampled_from([0.25, 0.5, 1]), "memory": st.integers(1, 30)}
)
requests = st.lists(st.tuples(st.integers(1, 12), amounts), min_size=1, max_size=4).map(
    lambda rows: [Request(f"r{i}", actors, needs) for i, (actors, needs) in enumerate(rows)]
)
groups = st.lists(st.tuples(st.integers(0, 4), amounts), min_size=1, max_size=4).map(
    lambda rows: [Group(f"g{i}", resources, most) for i, (most, resources) in enumerate(rows)]
)


@given(requests, groups, st.integers(0, 10))
def test_nothing_is_given_out_that_is_not_there(wanted, there, most: int) -> None:
    packing = pack(wanted, there, most)
    assert packing.nodes.total() <= most
    assert all(packing.nodes[group.name] <= group.most for group in there)
    assert all(0 <= packing.left[request.name] <= request.actors for request in wanted)
    for key in ("CPU", "GPU", "memory"):
        placed = sum((r.actors - packing.left[r.name]) * r.needs.get(key, 0) for r in wanted)
        held = sum(packing.nodes[g.name] * g.resources.get(key, 0) for g in there)
        assert placed <= held + 1e-6


@given(requests, groups, st.integers(1, 10))
def test_an_actor_that_fits_no_group_is_left_and_one_that_fits_is_not(wanted, there, most: int) -> None:
    for request in wanted:
        room = any(group.most and fits(request.needs, group.resources) for group in there)
        left = pack([request._replace(actors=1)], there, most).left
        assert (left.total() == 0) == (room or not request.needs and any(group.most for group in there))


@given(requests, groups, st.integers(0, 10))
def test_one_more_node_never_leaves_more_actors_of_a_single_request(wanted, there, most: int) -> None:
    for request in wanted:
        assert pack([request], there, most + 1).left.total() <= pack([request], there, most).left.total()


@given(amounts, groups)
def test_the_nearest_group_has_room_where_any_has(needs, there) -> None:
    near = nearest_group(needs, there)
    assert fits(needs, near.resources) == any(fits(needs, group.resources) for group in there)


def test_shares_of_a_gpu_fill_it() -> None:
    third = Request("workers", 6, {"GPU": 1 / 3, "CPU": 1})
    assert pack([third], [CPU, GPU], 16).nodes == Counter(gpu=2)


def test_work_without_a_gpu_leaves_nodes_with_one_alone_as_long_as_it_can() -> None:
    assert pack([Request("w", 8, {"CPU": 16})], [GPU, CPU], 16).nodes == Counter(cpu=8)
    assert pack([Request("w", 9, {"CPU": 8})], [GPU, CPU._replace(most=4)], 16).nodes == Counter(cpu=4, gpu=1)


def test_workers_and_search_actors_share_nodes() -> None:
    workers, search = Request("workers", 4, {"GPU": 1, "CPU": 2}), Request("search actors", 4, {"CPU": 6})
    assert pack([search, workers], [GPU], 16) == (Counter(gpu=4), Counter())
    assert pack([search._replace(actors=5), workers], [GPU], 16).left == Counter({"search actors": 1})


@pytest.mark.parametrize(
    ("needs", "near", "short"),
    [
        ({"GPU": 9}, "gpu", {"GPU": 9.0}),
        ({"CPU": 64}, "cpu", {"CPU": 4.0}),
        ({"CPU": 8, "memory": 44e9}, "cpu", {"memory": 2.0}),
        ({"GPU": 2, "CPU": 4, "memory": 1e9}, "gpu", {"GPU": 2.0}),
        ({"TPU": 1, "CPU": 1}, "cpu", {"TPU": float("inf")}),
    ],
)
def test_the_nearest_group_and_what_it_is_short_of(needs, near: str, short) -> None:
    group = nearest_group(needs, [CPU, GPU])
    assert group.name == near
    assert lacking(needs, group.resources) == short
