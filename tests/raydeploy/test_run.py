from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from raydeploy.connect import RayConfig
from raydeploy.environment import SUBMISSION_MARK
from raydeploy.run import Plan, Progress, Report, Run, run_job
from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a toy job."""

    output: str
    """Where it goes."""
    fail: str = ""
    """How it fails."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Not used."""


def body(config: Settings, run: Run) -> Report:
    if config.fail == "input":
        raise InputError("line 3 is broken; mend it.")
    if config.fail == "defect":
        raise KeyError("oops")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    with run.progress(2, "things") as progress:
        progress.advance(2)
    return Report([("things", "2")], {"things": 2})


def run(*argv: str) -> int:
    return run_job(
        "toy",
        Settings,
        plan=lambda c: Plan([("things", "2")]),
        body=body,
        description="A toy.",
        argv=argv,
        uses_ray=False,
    )


def test_a_run_leaves_its_settings_versions_and_report(tmp_path: Path, capsys) -> None:
    assert run("--output", str(tmp_path / "o")) == 0
    folder = tmp_path / "o" / "run"
    assert f"output: {tmp_path}/o" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "versions.json").read_text())["torch"]
    assert json.loads((folder / "report.json").read_text())["values"] == {"things": 2}
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events == ["started", "finished"]
    assert "toy: plan" in capsys.readouterr().out


@pytest.mark.parametrize(("fail", "code"), [("input", 2), ("defect", 1), ("interrupt", 130)])
def test_exit_codes_tell_input_from_defect(tmp_path: Path, capsys, fail: str, code: int) -> None:
    assert run("--output", str(tmp_path), "--fail", fail) == code
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) == (fail == "defect")
    assert {"input": "error: line 3 is broken", "defect": "defect", "interrupt": "same command again"}[fail] in errors


def test_a_plan_starts_nothing(tmp_path: Path, capsys) -> None:
    assert run("--output", str(tmp_path / "o"), "--plan") == 0
    assert not (tmp_path / "o").exists()
    assert "things" in capsys.readouterr().out


def test_the_configuration_is_printed_as_yaml(tmp_path: Path, capsys) -> None:
    assert run("--output", str(tmp_path / "o"), "--print-config") == 0
    assert capsys.readouterr().out.startswith(f"output: {tmp_path}/o\n")
    assert not (tmp_path / "o").exists()


def test_an_unwritable_output_is_refused_before_any_work(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert run("--output", str(tmp_path / "file" / "o")) == 2
    assert "cannot write" in capsys.readouterr().err
    assert run("--output", "") == 2


def test_a_submitted_job_needs_an_absolute_output(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv(SUBMISSION_MARK, "{}")
    assert run("--output", "relative") == 2
    assert "temporary copy" in capsys.readouterr().err
    assert run("--output", str(tmp_path)) == 0


def test_progress_lines_tell_rate_and_time_left() -> None:
    progress = Progress(10, "lines", Console(quiet=True))
    progress.started -= 2
    progress.advance(5)
    assert progress._line().startswith("5 of 10 lines (50%), 2.5/s, 2 s left")
    assert Progress(None, "lines", Console(quiet=True))._line().startswith("0 lines")


def test_progress_of_slow_work_tells_the_time_of_one() -> None:
    progress = Progress(4, "epochs", Console(quiet=True))
    progress.started -= 100
    progress.advance(1)
    assert progress._line() == "1 of 4 epochs (25%), 100 s each, 300 s left"
