"""The AMX kernels on emulated tiles: the same source, built anew, on any machine with AVX-512 and a compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from search_oracles import KINDS, make_keys, oracle, unit

native = pytest.importorskip("_vokenray_search")
ROOT = Path(__file__).parents[3]
BANK_KINDS = ("int8", "bf16", "split")
pytestmark = pytest.mark.skipif("avx512" not in native.instruction_sets("bf16"), reason="needs AVX-512 and BF16")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("amx")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force"]
    command += ["--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")]
    environment = {**os.environ, "VOKENRAY_EMULATE_AMX": "1", "CFLAGS": os.environ.get("CFLAGS", "") + " -O2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    built = list((folder / "lib").glob("_vokenray_search*"))
    if not built:
        pytest.skip(f"no compiler: {done.stderr[-500:]}")
    spec = importlib.util.spec_from_file_location("_vokenray_search", built[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def search(
    module: ModuleType, keys: np.ndarray, queries: np.ndarray, k: int, kind: str, instructions: str, threads: int = 1
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    counts = module.search(module.pack(keys, kind), keys, queries, threads, instructions, scores, ids)
    return scores, ids, counts


@pytest.mark.parametrize("kind", BANK_KINDS)
def test_it_says_what_it_is(emulated: ModuleType, kind: str) -> None:
    assert emulated.instruction_sets(kind)[-1] == "amx_emulated"
    assert "amx_emulated" not in native.instruction_sets(kind)


@pytest.mark.parametrize("kind", BANK_KINDS)
def test_odd_shapes_of_every_kind_equal_a_full_sort(emulated: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(5)
    for turn in range(60):
        count, width, asked = (int(n) for n in rng.integers((1, 1, 0), (400, 150, 70)))
        keys = make_keys(KINDS[turn % len(KINDS)], rng, count, width)
        queries = unit(rng, asked, width)
        k = int(rng.integers(1, min(count, 40) + 1))
        scores, ids, _ = search(emulated, keys, queries, k, kind, "amx_emulated", threads=1 + turn % 3)
        true_scores, true_ids = oracle(queries, keys, k)
        np.testing.assert_array_equal(ids, true_ids)
        np.testing.assert_array_equal(scores, true_scores)


@pytest.mark.parametrize(("width", "kind"), [(64, "int8"), (700, "int8"), (40, "bf16"), (700, "bf16"), (230, "split")])
def test_tiles_find_what_vectors_find(emulated: ModuleType, width: int, kind: str) -> None:
    """Some thousand keys: thresholds from a sample, scans that stop and go on, and loads of both kinds."""
    rng = np.random.default_rng(6)
    keys, queries = unit(rng, 3_000, width), unit(rng, 64, width)
    tiles = search(emulated, keys, queries, 5, kind, "amx_emulated")
    vectors = search(emulated, keys, queries, 5, kind, "avx512")
    np.testing.assert_array_equal(tiles[1], vectors[1])
    np.testing.assert_array_equal(tiles[0], vectors[0])
    if kind == "int8":  # sums are integers: the same candidates to the last
        assert tiles[2] == vectors[2]


def test_candidates_beyond_all_room_fall_back(emulated: ModuleType) -> None:
    keys = np.ones((70_000, 2), np.float32)
    scores, ids, counts = search(emulated, keys, np.ones((1, 2), np.float32), 3, "int8", "amx_emulated")
    assert ids.tolist() == [[0, 1, 2]] and scores.tolist() == [[2, 2, 2]] and counts[3] == 1
