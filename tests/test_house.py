"""Promises of the house that a reader can check by eye, checked by machine."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REQUIRED = """README.md docs benchmarks examples Makefile pyproject.toml constraints.txt LICENSE NOTICE CITATION.cff
CHANGELOG.md CONTRIBUTING.md .ci/run .rayignore .pre-commit-config.yaml cluster raydeploy vokenize xmatch alignment jobs
tests setup.cfg""".split()
PACKAGES = ("xmatch", "vokenize", "alignment", "raydeploy", "jobs")


@pytest.mark.parametrize("name", REQUIRED)
def test_the_top_level_is_complete(name: str) -> None:
    assert (ROOT / name).exists()


def test_files_and_functions_stay_small() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text()
            assert source.count("\n") <= 600, path
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 100, f"{path}: {node.name}"


def requirements() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in text.strip().splitlines()]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {re.sub(r"[-_.]+", "-", name).lower(): Version(version) for name, version in pairs}


def test_every_dependency_has_a_floor_that_its_pin_meets() -> None:
    known = pins()
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert ">=" in str(requirement.specifier), requirement
        if name != "faiss-gpu-cuvs":  # never installed beside faiss-cpu, which the constraints are for
            assert requirement.specifier.contains(known[name]), requirement


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_the_examples_are_small_and_every_photo_is_attributed() -> None:
    import json

    photos = {row["file_name"]: row for row in json.loads((ROOT / "examples" / "photos.json").read_text())}
    files = {path.name for path in (ROOT / "examples" / "photos").iterdir()}
    assert files == set(photos)
    assert all(row["credit"] and row["license_url"] and row["link"] for row in photos.values())
    size = sum(path.stat().st_size for path in (ROOT / "examples").rglob("*") if path.is_file())
    assert size <= 16 * 10**6
