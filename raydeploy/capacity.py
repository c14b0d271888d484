"""Whether what a job asks for fits the groups of a cluster, by the arithmetic of its autoscaler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Amounts = Mapping[str, float]
"""Of resources by Ray's names: CPU and GPU as counts, memory in bytes."""
SLACK = 1e-6
"""Resources are sums of fractions such as thirds of a GPU."""


class Group(NamedTuple):
    """Nodes of one kind.

    Attributes:
        name: in the cluster's file.
        resources: of one node; empty where the file does not say.
        most: nodes there can be.
        gpu_memory: bytes of each GPU; None where the file does not say.
    """

    name: str
    resources: Amounts
    most: int
    gpu_memory: int | None = None

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.name} ({amounts_text(self.resources)} a node)"


class Request(NamedTuple):
    """Actors that a job starts.

    Attributes:
        name: what they are, in the plural.
        actors: how many.
        needs: of each.
    """

    name: str
    actors: int
    needs: Amounts

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.actors} {self.name} with {amounts_text(self.needs)} each"


class Packing(NamedTuple):
    """Requests on nodes: how many nodes of each group, and how many actors of each request have none."""

    nodes: Counter[str]
    left: Counter[str]


def amounts_text(amounts: Amounts) -> str:
    """Resources as a person reads them."""
    shown = [
        f"{value / 1e9:.3g} GB memory" if key == "memory" else f"{value:g} {key}" for key, value in amounts.items()
    ]
    return ", ".join(shown) or "nothing"


def lacking(needs: Amounts, has: Amounts) -> dict[str, float]:
    """Resources of which there is too little, with how many times over they are wanted; inf where there is none."""
    return {
        key: value / has[key] if has.get(key, 0) else float("inf")
        for key, value in needs.items()
        if value > has.get(key, 0) + SLACK * value
    }


def fits(needs: Amounts, has: Amounts) -> bool:
    """Whether one actor has room."""
    return not lacking(needs, has)


def nearest_group(needs: Amounts, groups: Sequence[Group]) -> Group:
    """The group that comes closest to room for one actor: fewest resources short, then the least short of them."""
    return min(groups, key=lambda g: (len(short := lacking(needs, g.resources)), max(short.values(), default=0.0)))


def pack(requests: Sequence[Request], groups: Sequence[Group], most_nodes: int) -> Packing:
    """Put every actor on a node, opening nodes as they are needed: the greediest actors first, each on the first node.

    An autoscaler packs alike, so what finds no place here would wait there. Actors without a GPU go where no GPU is
    as long as they can.

    Args:
        requests: what the job starts, all at once.
        groups: of the cluster.
        most_nodes: beside the head, of all groups together.
    """
    packing, open_nodes = Packing(Counter(), Counter()), list[dict[str, float]]()
    for request in sorted(requests, key=_greed, reverse=True):
        wants_gpu = request.needs.get("GPU", 0) > 0
        order = sorted(groups, key=lambda g: not wants_gpu and g.resources.get("GPU", 0) > 0)
        for number in range(request.actors):
            node = next((node for node in open_nodes if fits(request.needs, node)), None)
            if node is None and packing.nodes.total() < most_nodes:
                node = _open(request, order, packing.nodes)
                open_nodes += [node] if node is not None else []
            if node is None:
                packing.left[request.name] += request.actors - number
                break
            for key, value in request.needs.items():
                node[key] -= value
    return packing


def _greed(request: Request) -> tuple[float, float, float]:
    return tuple(request.needs.get(key, 0.0) for key in ("GPU", "memory", "CPU"))  # type: ignore[return-value]


def _open(request: Request, groups: Sequence[Group], nodes: Counter[str]) -> dict[str, float] | None:
    for group in groups:
        if nodes[group.name] < group.most and fits(request.needs, group.resources):
            nodes[group.name] += 1
            return {**dict.fromkeys(request.needs, 0.0), **group.resources}
    return None
