"""Starting Ray in this process."""

from __future__ import annotations

import pytest
import ray

from raydeploy import connect as module
from raydeploy.connect import RayConfig, connect
from xmatch.errors import InputError


@pytest.mark.parametrize(
    ("said", "kind", "shown"),
    [
        ("The current node timed out during startup. This could happen because", InputError, "too busy"),
        ("another trouble", RuntimeError, "another trouble"),
    ],
)
def test_a_machine_that_is_too_busy_for_ray_is_told_so(monkeypatch, said: str, kind: type, shown: str) -> None:
    def start(**settings: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module, "joins_a_cluster", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(kind, match=shown), connect(RayConfig()):
        pass
