"""Ablations with a fake job: order of arguments, resume, failures, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ablate
from ablation_runs import fill
from ablation_table import markdown, summary

from xmatch.errors import InputError

JOB = """
import json, pathlib, sys
words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
folder = pathlib.Path(given["--output"])
calls = pathlib.Path(given["--calls"])
with calls.open("a") as sink:
    sink.write(json.dumps(words) + chr(10))
if given.get("--break") and pathlib.Path(given["--break"]).exists():
    print("error: broken on purpose")
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
value = float(given.get("--gain", 0)) * int(given["--seed"]) + float(given.get("--base", 100))
(folder / "retrieval.json").write_text(json.dumps({"figures": {"rsum": value, "i2t": {"r1": value / 2}}}))
"""


@pytest.fixture
def table(tmp_path: Path) -> dict:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    fixed = {"output": "${RUN}/evaluate", "seed": "${SEED}", "calls": "${CALLS}"}
    return {
        "name": "toy",
        "seeds": [1, 2, 3],
        "baseline": "plain",
        "metrics": ["rsum", "i2t.r1"],
        "arguments": {"work": {"base": 10}},
        "arms": {"plain": {}, "better": {"gain": 2, "break": "${CALLS}.break"}},
        "steps": [{"name": "work", "job": str(job), "arguments": fixed}],
    }


def run(tmp_path: Path, table: dict, *more: str) -> int:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    out = str(tmp_path / "out")
    return ablate.main(["--table", str(path), "--output", out, "--set", f"CALLS={tmp_path / 'calls'}", *more])


def calls(tmp_path: Path) -> list[list[str]]:
    path = tmp_path / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "table.json").read_text())


def test_every_arm_and_seed_runs_once_and_the_table_says_what_came_out(tmp_path: Path, table: dict) -> None:
    assert run(tmp_path, table) == 0
    found = result(tmp_path)["arms"]
    assert found["plain"]["rsum"] == {"seeds": {"1": 10, "2": 10, "3": 10}, "n": 3, "mean": 10, "deviation": 0}
    better = found["better"]["rsum"]
    assert (better["mean"], better["deviation"]) == (14, 2)
    test = better["against_baseline"]  # differences 2, 4, 6: t = 4 / (2 / sqrt 3) on two degrees of freedom
    assert test["t"] == pytest.approx(12**0.5) and test["p"] == pytest.approx(0.0741799)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| better | 3 | 14.00 ± 2.00 | +4.00 | 3 | 3.46 | 0.0742 | 1: 12.00, 2: 14.00, 3: 16.00 |" in text
    assert len(calls(tmp_path)) == 6
    assert run(tmp_path, table) == 0
    assert len(calls(tmp_path)) == 6  # a second run finds nothing to do
    assert (tmp_path / "out" / "better" / "seed-2" / "work.log").read_text().startswith("$ ")


def test_a_failing_run_is_listed_and_runs_again_next_time(tmp_path: Path, table: dict, capsys) -> None:
    (tmp_path / "calls.break").write_text("")
    assert run(tmp_path, table) == 1
    assert "FAILED, work ended with 2: error: broken on purpose" in capsys.readouterr().out
    found = result(tmp_path)
    assert [(row["arm"], row["seed"]) for row in found["failed"]] == [("better", 1), ("better", 2), ("better", 3)]
    assert found["arms"]["plain"]["rsum"]["n"] == 3 and found["arms"]["better"]["rsum"]["mean"] is None
    assert "Failed runs" in (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "calls.break").unlink()
    assert run(tmp_path, table) == 0
    assert len(calls(tmp_path)) == 9  # six, and the three that failed once more
    assert not result(tmp_path)["failed"]


def test_steps_that_ended_are_not_run_again_when_a_later_one_fails(tmp_path: Path, table: dict) -> None:
    first = table["steps"][0]
    second = {**first, "name": "second", "arguments": {**first["arguments"], "break": "${CALLS}.break"}}
    table |= {"steps": [first, second], "arms": {"plain": {"second": {"base": 7}}}, "seeds": [1]}
    (tmp_path / "calls.break").write_text("")
    assert run(tmp_path, table) == 1
    (tmp_path / "calls.break").unlink()
    assert run(tmp_path, table) == 0
    assert [call[call.index("--base") + 1] for call in calls(tmp_path)] == ["10", "7", "7"]


def test_only_and_seeds_to_come_are_missing_not_failed(tmp_path: Path, table: dict) -> None:
    assert run(tmp_path, table, "--only", "plain") == 0
    assert {row["arm"] for row in result(tmp_path)["missing"]} == {"better"}
    table["seeds"].append(4)
    assert run(tmp_path, table, "--jobs", "2") == 0
    assert len(calls(tmp_path)) == 8
    assert run(tmp_path, table, "--only", "beter") == 2


def test_plan_runs_nothing_and_writes_nothing(tmp_path: Path, table: dict, capsys) -> None:
    assert run(tmp_path, table, "--plan") == 0
    out = capsys.readouterr().out
    assert "better, seed 3: to do" in out and "--seed 3" in out and "${" not in out
    assert not calls(tmp_path) and not (tmp_path / "out").exists()


def test_a_run_with_other_arguments_or_another_config_is_refused(tmp_path: Path, table: dict, capsys) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("a: 1")
    table["arguments"]["work"]["config"] = str(config)
    assert run(tmp_path, table) == 0
    config.write_text("a: 2")
    assert run(tmp_path, table) == 2
    assert "was run with other arguments" in capsys.readouterr().err
    config.write_text("a: 1")
    table["arguments"]["work"]["base"] = 11
    assert run(tmp_path, table) == 2
    assert len(calls(tmp_path)) == 6


def test_what_is_prepared_runs_once_and_its_failure_stops_all(tmp_path: Path, table: dict) -> None:
    step = {"name": "once", "job": table["steps"][0]["job"]}
    step["arguments"] = {"output": "${RUN}", "seed": 5, "calls": "${CALLS}", "break": "${CALLS}.break"}
    table["prepare"] = [step]
    table["arguments"]["work"]["features"] = "${PREPARED}/once"
    (tmp_path / "calls.break").write_text("")
    assert run(tmp_path, table) == 2
    assert len(calls(tmp_path)) == 1
    (tmp_path / "calls.break").unlink()
    assert run(tmp_path, table) == run(tmp_path, table) == 0
    assert len(calls(tmp_path)) == 8
    assert str(tmp_path / "out" / "prepared" / "once") in calls(tmp_path)[-1]
    assert (tmp_path / "out" / "prepared" / "once" / "retrieval.json").exists()


def test_a_result_without_the_metric_is_a_failed_run(tmp_path: Path, table: dict) -> None:
    table["metrics"] = ["mrr"]
    assert run(tmp_path, table) == 1
    assert "'mrr', expected a finite number" in result(tmp_path)["failed"][0]["why"]


def test_arguments_go_from_files_to_table_to_arm_to_step() -> None:
    words = ablate.words_of(
        "j.py", {"config": "a", "x": 1, "y": True}, {"config": ["b", "c"], "x": [1, 2]}, {"z": None, "y": "s"}
    )
    assert words == ["j.py", *"--config a --config b --config c --x".split(), "[1, 2]", *"--y s --z null".split()]


@pytest.mark.parametrize(
    "change",
    [
        {"baseline": "none"},
        {"metrics": []},
        {"seeds": [1, 1]},
        {"arms": {"../up": {}}, "baseline": "../up"},
        {"arms": {"..": {}}, "baseline": ".."},
        {"arguments": {"train": {}}},
        {"typo": 1},
        {"arguments": {"work": {"base": "${NOWHERE}"}}},
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, table: dict, change: dict) -> None:
    assert run(tmp_path, table | change) == 2
    assert not calls(tmp_path)


def test_the_paired_test_takes_shared_seeds_only() -> None:
    figures = {"a": {1: {"m": 1.0}, 2: {"m": 2.0}}, "b": {2: {"m": 5.0}, 3: {"m": 9.0}}, "c": {}}
    found = summary("t", "a", ["m"], figures)
    assert found["arms"]["b"]["m"]["against_baseline"] == {
        "n": 1, "difference": 3.0, "deviation": None, "t": None, "p": None
    }  # fmt: skip
    assert "against_baseline" not in found["arms"]["c"]["m"]
    assert "| c | 0 | - ± - | - | - | - | - |  |" in markdown(found | {"failed": [], "missing": []})


def test_a_placeholder_without_value_is_named() -> None:
    with pytest.raises(InputError, match="--set DATA="):
        fill("${DATA}/x", {})
