"""The published schedule, which the optimizer of every recipe can follow."""

from __future__ import annotations

import pytest
from agree_cases import golden

from xmatch.training.optim import OptimConfig, rate_at


@pytest.mark.parametrize("run", ["toy", "real"])
def test_the_rate_is_the_golden_one(run: str) -> None:
    case = golden("agree_lr_schedule")[run]
    config = OptimConfig(lr=case["base_lr"], schedule="cosine", warmup_steps=case["warmup"])
    for step, rate in zip(case["step"], case["lr"], strict=True):
        found = config.lr * rate_at(step, case["total_steps"], config)
        assert found == pytest.approx(rate, rel=1e-9, abs=1e-18), step
