from __future__ import annotations

import time

import pyarrow as pa
import pytest

from raydeploy import forecast as module
from raydeploy.connect import RayConfig
from raydeploy.forecast import (
    Fact,
    Forecast,
    byte_size,
    can_measure,
    compared_rows,
    compared_values,
    duration,
    forecast,
    forecast_of,
    forecast_rows,
    measure_step,
    with_larger_stage,
)
from raydeploy.streams import ShardReport
from xmatch.data.steps import Shard, StepOutput, no_quarantine
from xmatch.errors import InputError

SHARDS = [Shard(f"part-{i:05d}", "here", 0, 0) for i in range(3)]


class Slow:
    """A step that takes a second to load and then a certain time for each row."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: list[int] = []

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        if not self.calls:
            self.seconds["load"] = 1.0
        self.calls.append(len(rows))
        time.sleep(0.001 * len(rows))
        self.seconds["work"] = self.seconds.get("work", 0.0) + 0.001 * len(rows)
        return StepOutput(rows, {"tokens": 7 * len(rows)}, no_quarantine())


def read(rows: int):
    return lambda shard: pa.table({"n": list(range(rows))})


def tokens(counts) -> int:
    return counts["tokens"]


def test_a_sample_leaves_out_loading_and_counts_the_rest() -> None:
    step = Slow()
    sample = measure_step(step, read(40), SHARDS, tokens, 5.0)
    assert sample is not None
    assert step.calls == [4, 4, 8, 16, 8]
    assert (sample.rows, sample.units, sample.shard_rows) == (36, 252, 40)
    assert set(sample.stages) == {"work"}
    assert sample.stages["work"] == pytest.approx(0.036)
    assert sample.seconds >= sample.stages["work"]
    assert sample.units_in(1) == 280
    assert sample.units_in(3) == 700


def test_a_sample_is_a_small_share_of_a_large_run_and_stops_in_time(monkeypatch) -> None:
    monkeypatch.setattr(module, "FEWEST_ROWS", 2)
    step = Slow()
    assert measure_step(step, read(1000), SHARDS, tokens, 60.0).rows == 150
    assert measure_step(Slow(), read(1000), SHARDS, tokens, 0.005).rows < 60


@pytest.mark.parametrize(("rows", "shards"), [(4, SHARDS), (9, [])])
def test_too_little_work_is_not_measured(rows: int, shards) -> None:
    assert measure_step(Slow(), read(rows), shards, tokens, 5.0) is None
    found = forecast_of(Slow(), read(rows), shards, RayConfig(), unit="tokens", count=tokens)
    assert isinstance(found, str)
    assert "too little work" in found
    assert forecast_rows(found) == [("expected time", found)]
    assert forecast_rows("") == []


def test_a_forecast_scales_with_the_work_and_is_shared_by_workers(monkeypatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(module, "joins_a_cluster", lambda: False)
    sample = module.Sample(100, 2.0, {"encoder": 1.5, "search": 0.5}, 3.0, 10, 10, 0)
    one = forecast(sample, "tokens", 1000, RayConfig(actors=1))
    assert one.seconds == pytest.approx(20 + 3 + module.STARTUP_S)
    assert one.stages == {"encoder": 15.0, "search": 5.0}
    assert forecast(sample, "tokens", 1000, RayConfig(actors=2)).seconds == pytest.approx(10 + 3 + module.STARTUP_S)
    many = forecast(sample, "tokens", 1000, RayConfig(actors=16))
    assert many.seconds == pytest.approx(5 + 3 + module.STARTUP_S), "four cores do not work like sixteen"
    slower = with_larger_stage(sample, "search", 3.0)
    assert (slower.seconds, slower.stages["search"]) == (3.0, 1.5)
    assert with_larger_stage(sample, "nothing", 3.0) == sample


def test_what_cannot_be_measured_says_why() -> None:
    assert can_measure(RayConfig()) == ""
    assert "calibration_s is 0" in can_measure(RayConfig(calibration_s=0))
    assert "GPUs" in can_measure(RayConfig(gpus_per_actor=1))
    with pytest.raises(InputError, match="calibration_s >= 0"):
        RayConfig(calibration_s=-1)


def test_forecast_stands_beside_fact() -> None:
    found = Forecast("tokens", 1000.0, 40.0, {"encoder": 30.0, "search": 2.0}, 2e9, "100 tokens")
    assert ("expected shares", "encoder 94%, search 6%") in forecast_rows(found)
    fact = Fact()
    fact.add(ShardReport("a", {}, {"encoder": 20.0, "search": 1.0}, 10**9), 400)
    fact.add(ShardReport("b", {}, {"encoder": 5.0}, 3 * 10**9), 600)
    fact.add(ShardReport("c", {}, {}), 50)  # was done already
    rows = dict(compared_rows(found, fact, 50.0))
    assert rows["time"] == "forecast 40.0 s, took 50.0 s, 1.25 times"
    assert rows["encoder"] == "forecast 30.0 s, took 25.0 s"
    assert rows["memory of a worker"] == "forecast 2.0 GB, was 3.0 GB"
    assert compared_values(found, fact, 50.0)["fact"]["units"] == 1000
    half = Fact()
    half.add(ShardReport("a", {}, {"encoder": 20.0}), 500)
    assert dict(compared_rows(found, half, 20.0))["time"].startswith("forecast 20.0 s (for the 50% that were left)")
    assert compared_rows(found, Fact(), 1.0) == [("forecast", "nothing was left to do")]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.004, "4 ms"), (90, "90.0 s"), (600, "10.0 min"), (9000, "2.5 h"), (1e6, "11.6 days")]
)
def test_durations_and_sizes_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
    assert (byte_size(2.5e6), byte_size(3e9)) == ("2.5 MB", "3.0 GB")
