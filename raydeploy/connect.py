"""The one place where Ray is started or joined, and left again."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray

from raydeploy.environment import QUIET, joins_a_cluster
from raydeploy.faults import FaultConfig
from xmatch.errors import InputError

PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
SPARE_CPUS = 1
"""Logical cores beyond the actors' own, for the tasks that read and the trainer's controller."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where and how wide a job runs."""

    num_cpus: int | None = None
    """CPU cores of a Ray started here; null: all of them."""
    object_store_mb: int = 512
    """Shared memory of a Ray started here, in MiB."""
    actors: int = 1
    """Workers that hold models and search."""
    cpus_per_actor: float = 1
    """CPU cores, and torch threads, of each of them."""
    gpus_per_actor: float = 0
    """GPUs, or a share of one, of each of them."""
    calibration_s: float = 5.0
    """Most seconds spent, before a run, on measuring how long it will take; 0: no forecast."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """What is done about items that fail and workers that hang."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        if self.actors < 1 or self.cpus_per_actor <= 0 or min(self.gpus_per_actor, self.calibration_s) < 0:
            raise InputError(
                f"ray needs actors >= 1, cpus_per_actor > 0, gpus_per_actor >= 0, calibration_s >= 0; got "
                f"{self.actors}, {self.cpus_per_actor}, {self.gpus_per_actor}, {self.calibration_s}."
            )


@contextmanager
def connect(config: RayConfig, extra_cpus: float = 0) -> Iterator[None]:
    """Be connected to Ray within the block.

    `extra_cpus` are those of a job's further actors, such as the shards of a search.

    A Ray that this process is connected to already is used and left as it is; a cluster is joined when the job was
    submitted to one, or RAY_ADDRESS names one; otherwise Ray starts in this process, behind a
    token that only this process has, and is shut down.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised; we say it
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    if joins_a_cluster():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start_here(config, extra_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _start_here(config: RayConfig, extra_cpus: float) -> None:
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]))
    cpus = config.num_cpus or os.cpu_count() or 1
    with _silent_stderr(), _told_when_too_slow():
        ray.init(
            address="local",
            num_cpus=max(cpus, math.ceil(config.actors * config.cpus_per_actor + extra_cpus)) + SPARE_CPUS,
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": path, **QUIET}},
            _node_ip_address="127.0.0.1",
        )


@contextmanager
def _told_when_too_slow() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises no class of its own here
        if "timed out during startup" not in str(error):
            raise
        raise InputError(
            "Ray did not start on this machine in time; most likely it is too busy or out of memory. Run the same "
            "command again, when less is going on: what is finished is kept."
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what Ray's native code says while it starts; what goes wrong is raised as an exception all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
