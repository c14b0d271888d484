"""Groups of training workers that may be smaller than wished: what Ray's own elastic groups lack.

Ray asks for the workers packed and learns of lost nodes every twenty seconds. So workers that must be on nodes of
their own would wait for ever on a node that has room for two of them, and a lost node would be counted on.
"""

from __future__ import annotations

import os
from typing import Any

import ray
import ray.train.torch as ray_torch
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S = "20"
"""Seconds after which a smaller group is tried; Ray's 60 are meant for nodes that are still being started."""


class ElasticTrainer(ray_torch.TorchTrainer):
    """Ray's trainer; elastic groups follow `PlaceableWorkers`."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            os.environ.setdefault(START_TIMEOUT, START_TIMEOUT_S)
            arguments["scaling_policy"] = PlaceableWorkers(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class PlaceableWorkers(ElasticScalingPolicy):
    """Counts only workers that living nodes have room for; a group that could not start is tried one smaller."""

    def __init__(self, scaling_config: Any) -> None:
        super().__init__(scaling_config)
        self._starts = 0
        """Starts since a group last ran."""

    def make_decision_for_non_running_worker_group(self) -> Any:
        """How many workers to start with."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            decision.num_workers = max(self.scaling_config.min_workers, decision.num_workers - self._starts)
            self._starts += 1
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Whether to change the size of a group that runs."""
        self._starts = 0
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        living = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        if self.scaling_config.placement_strategy != "STRICT_SPREAD":
            reserved = {node: there for node, there in reserved_resources.items() if node in living}
            return int(super()._count_possible_workers(reserved))
        return count_nodes(
            list(living.values()), self.scaling_config._resources_per_worker_not_none, self.scaling_config.max_workers
        )


def count_nodes(nodes: list[dict[str, float]], worker: dict[str, float], most: int) -> int:
    """Nodes with room for one worker, at most `most`.

    Args:
        nodes: resources of each node by name, such as CPU.
        worker: what a worker takes, by name.
        most: workers wanted.
    """
    fitting = [there for there in nodes if all(there.get(name, 0.0) >= amount for name, amount in worker.items())]
    return min(len(fitting), most)
