"""A crash at any single step of the commit protocol, followed by a rerun, leaves what an undisturbed run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"


def crashes(place: str, kind: str, environment: dict[str, str] | None = None) -> dict:
    command = [sys.executable, str(HELPERS / "crashes.py"), place, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_any_crash_on_a_local_disk_is_survived(tmp_path: Path) -> None:
    found = crashes(str(tmp_path), "local")
    assert found["wrong"] == []
    assert found["points"] > 50
    kinds = {f"{when} {what}" for when in ("before", "after") for what in ("replace", "link", "unlink", "fsync")}
    assert kinds | {"half written"} <= set(found["kinds"])


@pytest.mark.s3
@pytest.mark.slow
def test_any_crash_on_an_object_store_is_survived(s3_environment: dict[str, str]) -> None:
    found = crashes("s3://runs/crashes", "store", s3_environment)
    assert found["wrong"] == []
    assert {"before conditional put", "after conditional put", "before upload"} <= set(found["kinds"])
