"""What is uploaded: Ray's very files, small, code only, and each mistake noticed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from raydeploy.upload import LIMIT_BYTES, UploadedFile, mistakes, uploaded_files
from xmatch.errors import InputError

ROOT = Path(__file__).parents[2]


def packed_by_ray(folder: Path, target: Path) -> dict[str, int]:
    """Names and sizes in the package that Ray makes of a folder."""
    create_package(str(folder), target, include_gitignore=True)
    with zipfile.ZipFile(target) as package:
        return {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}


def test_the_projects_own_upload_is_small_and_code_only(tmp_path: Path) -> None:
    found = uploaded_files(str(ROOT))
    assert packed_by_ray(ROOT, tmp_path / "p.zip") == {file.path: file.size for file in found}
    assert (tmp_path / "p.zip").stat().st_size < 3_000_000 < LIMIT_BYTES
    assert mistakes(found) == []
    paths = {file.path for file in found}
    folders = {path.split("/")[0] for path in paths if "/" in path}
    assert folders == {"xmatch", "vokenize", "alignment", "raydeploy", "jobs"}
    assert {"jobs/vokenize_corpus.py", "jobs/configs/recommended.yaml", "constraints.txt"} <= paths
    modules = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert modules <= paths


UNWANTED = {
    ".git/objects/ab/cdef": b"x" * 1000,
    ".venv/lib/python3.11/site-packages/torch/x.py": b"x",
    ".mypy_cache/3.11/x.json": b"{}",
    "xmatch/__pycache__/x.cpython-311.pyc": b"x",
    "_vokenray_search.cpython-311-x86_64-linux-gnu.so": b"x" * 500,
    "build/lib/x.o": b"x",
    "vokenray.egg-info/PKG-INFO": b"x",
    "examples/photos/1.jpg": b"x",
    "demo-output/keys/shards/part-00000.arrow": b"x",
    ".coverage": b"x",
    "tests/golden/model.json": b"{}",
    "docs/page.png": b"x",
}


def project(folder: Path, *, has_ignores: bool) -> Path:
    """A project of two files of code and everything that does not belong in an upload."""
    wanted = {"xmatch/errors.py": b"", "jobs/embed.py": b""}
    ignores = {name: (ROOT / name).read_bytes() for name in (".gitignore", ".rayignore")} if has_ignores else {}
    for name, content in {**wanted, **UNWANTED, **ignores}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_what_does_not_belong_in_it_is_kept_out(tmp_path: Path) -> None:
    folder = project(tmp_path / "p", has_ignores=True)
    assert [file.path for file in uploaded_files(str(folder))] == ["jobs/embed.py", "xmatch/errors.py"]


def test_the_ignores_of_ray_alone_suffice(tmp_path: Path, monkeypatch) -> None:
    folder = project(tmp_path / "p", has_ignores=True)
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert [file.path for file in uploaded_files(str(folder))] == ["jobs/embed.py", "xmatch/errors.py"]


def test_without_them_each_mistake_is_named(tmp_path: Path) -> None:
    found = uploaded_files(str(project(tmp_path / "p", has_ignores=False)))
    assert {file.path for file in found} == {"jobs/embed.py", "xmatch/errors.py", *UNWANTED}
    patterns = [mistake.pattern for mistake in mistakes(found)]
    assert {".git", ".venv", ".mypy_cache", "**/__pycache__", "*.so", "build", "vokenray.egg-info"} <= set(patterns)
    assert "demo-output" in patterns
    assert patterns[0] == ".git", "the largest comes first"


def test_data_and_large_files_are_mistakes_wherever_they_lie() -> None:
    wrong = [
        UploadedFile("xmatch/keys.arrow", 5),
        UploadedFile("corpus.txt", 20_000_000),
        UploadedFile("jobs/deep/m.safetensors", 9),
    ]
    right = [UploadedFile("jobs/configs/a.yaml", 3000), UploadedFile("xmatch/pages/templates/page.html.j2", 9000)]
    assert {mistake.pattern for mistake in mistakes([*wrong, *right])} == {file.path for file in wrong}


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        uploaded_files(str(tmp_path / "nowhere"))
