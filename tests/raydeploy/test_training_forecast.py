from __future__ import annotations

import pytest

from raydeploy.forecast import PROCESS_BYTES, STARTUP_S, Sample
from raydeploy.training import TrainerConfig
from raydeploy.training_forecast import ADAM_BYTES, training_fact, training_forecast
from xmatch.training.trial import Trial

TRIAL = Trial(samples=100, seconds=2.0, load_seconds=1.0, weights=(1000, 400))
IMAGES = Sample(units=10, seconds=1.0, stages={}, load_seconds=0.5, rows=10, shard_rows=10, memory_bytes=0)


def test_steps_and_features_are_scaled_to_the_run() -> None:
    found = training_forecast(TRIAL, IMAGES, 50, 1000, TrainerConfig(workers=2), "captions")
    assert found.stages == {"training": 10.0, "features": 5.0}
    assert found.seconds == pytest.approx(16.0 + 2 * STARTUP_S)
    assert found.memory_bytes == PROCESS_BYTES + 4 * 600 + ADAM_BYTES * 400
    assert "features of 10 images" in found.basis
    assert set(training_forecast(TRIAL, None, 50, 1000, TrainerConfig(), "captions").stages) == {"training"}


def test_epochs_of_an_earlier_run_do_not_count() -> None:
    history = [{"epoch": epoch, "samples": 10, "seconds": 2.5} for epoch in range(3)]
    fact = training_fact(history, {0}, 4.0)
    assert fact.units == 20
    assert fact.stages == {"training": 5.0, "features": 4.0}
    assert training_fact(history, {0, 1, 2}, 0.0).units == 0
