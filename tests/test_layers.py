"""Who may import whom: read from every import of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"xmatch", "vokenize", "alignment", "raydeploy", "jobs"}
MAY_IMPORT = {
    "xmatch": {"xmatch"},
    "vokenize": {"xmatch", "vokenize"},
    "alignment": {"xmatch", "alignment"},
    "raydeploy": {"xmatch", "raydeploy"},
    "jobs": OURS,
}
ONLY_IN = {
    "ray": ("raydeploy/",),
    "boto3": ("raydeploy/",),
    "h5py": ("xmatch/data/key_files.py", "vokenize/original_tokens.py", "vokenize/original_vokens.py"),
    "timm": ("xmatch/models/towers/timm_backbones.py",),
    "faiss": ("xmatch/search/faiss_",),
    "_vokenray_search": ("xmatch/search/native_backend.py",),
    "triton": ("xmatch/search/triton_kernel.py",),
    "spacy": ("vokenize/original_tokens.py", "alignment/entities/spacy_tagger.py"),
    "textblob": ("alignment/entities/textblob_tagger.py",),
    "pickle": ("xmatch/data/legacy_pickle.py",),
    "nltk": ("xmatch/data/words.py",),
}
LAZY = {"faiss", "spacy", "textblob", "_vokenray_search", "xmatch.search.triton_kernel"}


class Import(NamedTuple):
    module: str
    is_lazy: bool


def imports_of(source: str) -> Iterator[Import]:
    """Every module a source imports, and whether only when a function runs."""
    tree = ast.parse(source)
    lazy = {id(inner) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for inner in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield Import(node.module, id(node) in lazy)


def violations(path: str, source: str) -> list[str]:
    """What a file imports against the rules of the house."""
    found = []
    package = path.split("/")[0]
    for module, is_lazy in imports_of(source):
        top = module.split(".")[0]
        if top in OURS and top not in MAY_IMPORT[package]:
            found.append(f"{path} imports {module}: {package} may import {sorted(MAY_IMPORT[package])}")
        if top in ONLY_IN and not path.startswith(ONLY_IN[top] or ("-",)):
            found.append(f"{path} imports {module}, which belongs in {ONLY_IN[top] or 'no file'}")
        if {top, module} & LAZY and not is_lazy:
            found.append(f"{path} imports {module} when it is loaded; it must be inside a function")
    return found


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in sorted(OURS)
        for path in (ROOT / package).rglob("*.py")
    }


def test_every_import_keeps_the_rules() -> None:
    found = [line for path, source in sources().items() for line in violations(path, source)]
    assert len(sources()) > 40
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("xmatch/a.py", "import vokenize"),
        ("xmatch/a.py", "from raydeploy.run import run_job"),
        ("vokenize/a.py", "from alignment import x"),
        ("raydeploy/a.py", "import jobs.embed"),
        ("vokenize/a.py", "def f():\n    import ray"),
        ("jobs/a.py", "import ray.data"),
        ("xmatch/a.py", "import boto3"),
        ("xmatch/data/vectors.py", "import h5py"),
        ("xmatch/models/heads.py", "import timm"),
        ("xmatch/search/faiss_backend.py", "import faiss"),
        ("xmatch/search/exact.py", "def f():\n    import faiss"),
        ("xmatch/search/triton_backend.py", "def f():\n    import triton"),
        ("xmatch/search/triton_backend.py", "from xmatch.search.triton_kernel import scan"),
        ("raydeploy/a.py", "import pickle"),
    ],
)
def test_each_rule_can_be_broken(path: str, source: str) -> None:
    assert violations(path, source)


def module_graph() -> dict[str, set[str]]:
    """Imports between our modules when they are loaded."""
    names = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): source
        for path, source in sources().items()
    }
    return {
        name: {i.module for i in imports_of(source) if not i.is_lazy and i.module in names and i.module != name}
        for name, source in names.items()
        if not name.startswith("jobs.__main__")
    }


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = module_graph()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    front_doors = {"xmatch", "xmatch.search"}  # they re-export and are imported by nobody below them
    for name in graph:
        if name not in front_doors:
            visit(name, ())
    assert len(done) > 30
