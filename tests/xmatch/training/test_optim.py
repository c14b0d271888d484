from __future__ import annotations

import pytest
import torch

from xmatch.errors import InputError
from xmatch.training.optim import OptimConfig, build_optimizer, decay_groups, rate_at


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_rise_then_fall_to_zero(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup_share=0.1)
    rates = [rate_at(step, 100, config) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_the_published_rate_is_constant() -> None:
    assert {rate_at(step, 50, OptimConfig()) for step in range(50)} == {1.0}


def test_decay_is_for_trainable_matrices_only() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    model[1].requires_grad_(False)
    with_decay, without = decay_groups(model, 0.1)
    assert [p.shape for p in with_decay["params"]] == [(2, 3)]
    assert [p.shape for p in without["params"]] == [(2,)]
    assert build_optimizer(decay_groups(model, 0.1), OptimConfig()).param_groups[0]["weight_decay"] == 0.0


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="lr > 0"):
        OptimConfig(lr=0)
