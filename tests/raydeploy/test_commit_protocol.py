"""A crash at any single step of the commit protocol, followed by a rerun, leaves what an undisturbed run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import Point, table

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"


def crashes(place: str, kind: str, environment: dict[str, str] | None = None) -> list[Point]:
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "crashes.py"), place, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, env=environment)
    assert done.returncode == 0, done.stderr
    return [Point(*point) for point in json.loads(done.stdout)]


def documented(heading: str) -> list[str]:
    """The lines of the table below a heading of the document."""
    below = DOCUMENT.read_text().split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    return [line for line in below.splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_any_crash_on_a_local_disk_is_survived_as_the_table_says(tmp_path: Path) -> None:
    found = crashes(str(tmp_path), "local")
    assert [point.name for point in found if not point.survived] == []
    assert len(found) > 50
    kinds = {f"{when} {what}" for when in ("before", "after") for what in ("replace", "link", "unlink", "fsync")}
    assert kinds | {"half of"} <= {" ".join(point.name.split()[:2]) for point in found}
    assert documented("On a local disk") == table(found)


@pytest.mark.s3
@pytest.mark.slow
def test_any_crash_on_an_object_store_is_survived_as_the_table_says(s3_environment: dict[str, str]) -> None:
    found = crashes("s3://runs/crashes", "store", s3_environment)
    assert [point.name for point in found if not point.survived] == []
    assert {"before create", "after create", "before upload"} <= {" ".join(point.name.split()[:2]) for point in found}
    assert documented("In an object store") == table(found)


def test_a_point_that_is_not_survived_stands_out() -> None:
    points = [Point("before link x", "nothing", "2 shards", True), Point("after link x", "identity", "no shard", False)]
    assert table(points)[2] == "| link x | nothing; 2 shards | identity; no shard | **no** |"
