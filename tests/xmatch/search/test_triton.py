"""The GPU kernels: interpreted in a process of their own, compiled for GPUs that are not there, run on one that is.

The interpreter must be chosen before triton is first imported, so this file starts itself anew with it.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracles import KINDS, make_keys, oracle, unit

from xmatch.errors import InputError
from xmatch.search import build_searcher, searcher, triton_backend, triton_plan
from xmatch.search.exact import Keys, SearchCounts
from xmatch.search.scores import norms
from xmatch.search.triton_backend import TritonScan, has_gpu, is_interpreted
from xmatch.search.triton_plan import (
    HELD_TILES,
    MOST_ENTRIES,
    STREAMED_TILES,
    Columns,
    Tile,
    columns_of,
    plan_for,
    tile_for,
)

ROOT = Path(__file__).parents[3]
BENCHMARK = ROOT / "benchmarks" / "bench_search_gpu.py"
SMALL = Tile(16, 32, 4, 4, 2)


def check(keys: np.ndarray, queries: np.ndarray, k: int, tile: Tile | None = SMALL) -> SearchCounts:
    """What a search took, once its answer is the oracle's to the last bit."""
    found = TritonScan(Keys(keys, norms(keys)), 1, tile=tile).top(queries, k)
    scores, rows = oracle(queries, keys.astype(np.float32), k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert not np.signbit(found.scores[found.scores == 0]).any()
    assert found.counts.queries == len(queries)
    return found.counts


def queries_near(keys: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    queries = unit(rng, count, keys.shape[1])
    queries[: count // 3] = keys[rng.integers(0, len(keys), count // 3)]
    queries[-1] = 0
    return queries


if is_interpreted():
    KINDS_OF_KEYS = st.sampled_from(KINDS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_equals_a_full_sort(kind: str) -> None:
        rng = np.random.default_rng(len(kind))
        keys = make_keys(kind, rng, 110, 33)
        counts = check(keys, queries_near(keys, rng, 9), 5)
        if kind == "random":
            assert counts.fallbacks == 0
            assert counts.candidates < 9 * 60

    @settings(deadline=None, max_examples=3, derandomize=True)
    @given(
        seed=st.integers(0, 10**6),
        count=st.integers(1, 130),
        width=st.integers(1, 40),
        k=st.integers(1, 128),
        asked=st.integers(1, 20),
        kind=KINDS_OF_KEYS,
    )
    def test_odd_shapes_equal_a_full_sort(seed: int, count: int, width: int, k: int, asked: int, kind: str) -> None:
        rng = np.random.default_rng(seed)
        keys = make_keys(kind, rng, count, width)
        check(keys, queries_near(keys, rng, asked), min(k, count))

    @pytest.mark.slow
    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(
        seed=st.integers(0, 10**6),
        count=st.integers(1, 700),
        width=st.integers(1, 300),
        k=st.sampled_from([1, 2, 10, 17, 64, 128, 129]),
        asked=st.integers(1, 40),
        kind=KINDS_OF_KEYS,
        tile=st.sampled_from([SMALL, Tile(16, 64, 4, 4, 2), Tile(32, 64, 8, 4, 2), *HELD_TILES]),
    )
    def test_many_odd_shapes_equal_a_full_sort(
        seed: int, count: int, width: int, k: int, asked: int, kind: str, tile: Tile
    ) -> None:
        rng = np.random.default_rng(seed)
        keys = make_keys(kind, rng, count, width)
        check(keys, queries_near(keys, rng, asked), min(k, count), tile)

    @pytest.mark.parametrize(("width", "tile"), [(150, SMALL), (9, None)])
    def test_wide_rows_are_multiplied_in_pieces(width: int, tile: Tile | None) -> None:
        rng = np.random.default_rng(1)
        keys = unit(rng, 200, width)
        assert check(keys, unit(rng, 17, width), 3, tile).fallbacks == 0
        assert columns_of(150) == Columns(64, 3)

    def test_keys_of_sixteen_bits_keep_their_values() -> None:
        import ml_dtypes

        rng = np.random.default_rng(2)
        keys = unit(rng, 90, 20)
        for dtype in (np.float16, ml_dtypes.bfloat16):
            check(keys.astype(dtype), unit(rng, 6, 20), 4)

    def test_what_rounding_reverses_stays_a_candidate() -> None:
        rng = np.random.default_rng(8)
        check(unit(rng, 400, 8), unit(rng, 32, 8), 10)

    def test_padding_is_no_key() -> None:
        rng = np.random.default_rng(9)
        for count, k in ((1, 1), (5, 5), (33, 20), (37, 24)):
            keys = unit(rng, count, 6)
            check(keys, unit(rng, 12, 6), k)

    def test_sums_that_cancel_are_done_exactly() -> None:
        rng = np.random.default_rng(10)
        keys, queries = (rng.integers(-2, 3, (count, 9)).astype(np.float32) for count in (40, 8))
        assert check(keys, queries, 40).exact_sums > 0

    def plant_in_one_bucket(rng: np.random.Generator, best: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys of which the best lie in one lane of one segment, and a query for them."""
        keys, query = unit(rng, 64 * 32, 16) / 8, unit(rng, 1, 16)
        lanes, group = SMALL.lanes, 8
        assert SMALL.keys == lanes * group
        rows = np.arange(best) * SMALL.keys + 1  # the same lane of the first tiles
        keys[rows] = query + 1e-3 * rng.standard_normal((best, 16))
        return keys.astype(np.float32), query

    def test_what_a_bucket_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
        keys, query = plant_in_one_bucket(np.random.default_rng(3), 5)
        depths: list[tuple[bool, int]] = []
        real = triton_backend.plan_for

        def two_segments(*args: Any) -> triton_plan.Plan:
            plan = real(*args)
            deep = args[-1]
            plan = plan._replace(group=8, segment=1 if deep else 32, segments=64 if deep else 2)
            depths.append((deep, plan.kept))
            return plan

        monkeypatch.setattr(triton_backend, "plan_for", two_segments)
        near = []
        real_near = TritonScan._near

        def noted(scan: TritonScan, *args: Any) -> Any:
            near.append(real_near(scan, *args))
            return near[-1]

        monkeypatch.setattr(TritonScan, "_near", noted)
        assert check(keys, query, 3).fallbacks == 0
        assert depths == [(False, 2), (True, 4)]
        assert near[0].counts.tolist() == [-1]
        assert near[1].counts.min() >= 3

    def test_more_candidates_than_room_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton_plan, "MOST_ROOM", 8)
        rng = np.random.default_rng(4)
        keys = np.repeat(unit(rng, 2, 8), 150, axis=0)
        assert check(keys, unit(rng, 3, 8), 2).fallbacks == 3

    def test_results_beyond_the_kernels_are_exact_too() -> None:
        rng = np.random.default_rng(5)
        keys = unit(rng, 200, 12)
        assert check(keys, unit(rng, 3, 12), 150).fallbacks == 3

    def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(6)
        keys, queries = unit(rng, 40, 8), unit(rng, 10, 8)
        whole = check(keys, queries, 4)
        monkeypatch.setattr(triton_backend, "BLOCK_VALUES", 8 * 6)
        monkeypatch.setattr(triton_backend, "BLOCK_PAIRS", 99)
        assert check(keys, queries, 4) == whole

    def test_the_searcher_offers_it() -> None:
        rng = np.random.default_rng(7)
        keys, queries = unit(rng, 60, 8), unit(rng, 5, 8)
        queries.flags.writeable = False
        first = 2**31 - 20
        found = build_searcher(keys, "triton", first_id=first).search(queries, 3)
        np.testing.assert_array_equal(found.ids, oracle(queries, keys, 3)[1] + first)
        grouped = build_searcher(keys, "triton", groups=np.arange(60) // 4).search(queries, 2)
        expected = build_searcher(keys, "torch", groups=np.arange(60) // 4).search(queries, 2)
        np.testing.assert_array_equal(grouped.ids, expected.ids)

    def test_the_benchmark_runs_without_times(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = ["bench", "--interpret", "--cells", "70:20:2:9", "--rivals", "triton", "torch_fp32", "faiss_bf16"]
        monkeypatch.setattr(sys, "argv", [*argv, "--rounds", "1"])
        runpy.run_path(str(BENCHMARK), run_name="__main__")
        printed = capsys.readouterr().out
        rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 70:20")]
        assert [row[1] for row in rows] == ["triton", "torch_fp32"]
        assert rows[0][6] == "1.0000"
        assert "faiss_bf16 is left out" in printed

else:

    @pytest.mark.parametrize("pick", [pytest.param("not slow"), pytest.param("slow", marks=pytest.mark.slow)])
    def test_the_kernels_are_exact_in_the_interpreter(pick: str) -> None:
        command = [sys.executable, "-m", "pytest", "-m", pick, "-p", "no:cacheprovider", "--timeout=280", __file__]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert "[100%]" in done.stdout

    class Target:
        """Stands in for a GPU, so that triton compiles for one that is not there."""

        def __init__(self, capability: int) -> None:
            self.capability = capability

        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cuda", self.capability, 32)

        def get_current_device(self) -> int:
            return self.capability  # compiled kernels are kept by device

        def get_current_stream(self, device: int) -> int:
            return 0

    class Compiled:
        """A kernel that is compiled where it would be launched."""

        def __init__(self, kernel: Any) -> None:
            self.kernel, self.made = kernel, []

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*args: Any, **options: Any) -> None:
                self.made.append(self.kernel.warmup(*args, grid=grid, **options))
                for written in args[2:]:
                    if isinstance(written, torch.Tensor):
                        written.zero_()

            assert all(size > 0 for size in grid)
            return launch

    def compile_for(
        capability: int, shared: int, width: int, k: int, is_deep: bool, monkeypatch: pytest.MonkeyPatch
    ) -> dict[str, Any]:
        """The three kernels as a search of 5,000 keys would launch them on such a GPU."""
        from triton.runtime import driver

        from xmatch.search import triton_kernel

        kernels = {name: Compiled(getattr(triton_kernel, name)) for name in ("scan", "select", "rescore")}
        for name, kernel in kernels.items():
            monkeypatch.setattr(triton_kernel, name, kernel)
        monkeypatch.setattr(triton_backend, "has_gpu", lambda: True)
        keys = np.ones((5000, width), np.float32)
        tile = tile_for(columns_of(width), shared, capability == 90)
        scan = TritonScan(Keys(keys, norms(keys)), 1, "cpu", tile)
        plan = plan_for(5000, width, k, tile, 2, 264, is_deep)
        asked = triton_backend._Asked(torch.zeros(256, columns_of(width).padded, dtype=torch.bfloat16), torch.ones(200))
        monkeypatch.setattr(driver, "_active", Target(capability))
        near = scan._near(asked, k, plan)
        near.counts[:], near.groups[:] = k, 0
        room = 1 << (k - 1).bit_length()
        scan._best(torch.ones(200, width), torch.ones(200), near, room, plan, min(k, room * plan.group))
        return {name: kernel.made[0] for name, kernel in kernels.items()}

    def check_products(capability: int, kernel: Any) -> None:
        """That tensor cores are used, several products are under way at a time, and no register goes to memory."""
        sass = kernel.asm["sass"]
        products = re.findall(r"HGMMA.*BF16.*" if capability == 90 else r"HMMA\.16816\.F32\.BF16.*", sass)
        assert products
        assert sum("gsb0" in line for line in products) <= max(1, len(products) // 2)  # each of them waits for its own
        if capability != 86:
            assert not re.findall(r"\b(LDL|STL)\b", sass)

    def test_the_kernels_compile_for_a_hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        made = compile_for(90, 232_448, 64, 10, False, monkeypatch)
        check_products(90, made["scan"])
        assert "fma.rn.f64" in made["rescore"].asm["ptx"]
        assert all(len(kernel.asm["cubin"]) > 1000 and kernel.metadata.shared <= 232_448 for kernel in made.values())
        for kernel in made.values():
            assert "max.ftz" not in kernel.asm["ptx"]
            assert "min.ftz" not in kernel.asm["ptx"]

    @pytest.mark.slow
    @pytest.mark.parametrize(("capability", "shared"), [(90, 232_448), (80, 166_912), (86, 101_376)])
    @pytest.mark.parametrize("width", [3, 64, 128, 256, 300, 1024])
    def test_the_kernels_compile_for_every_width(
        capability: int, shared: int, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        for k in (1, 10, 128):
            for is_deep in (False, True):
                made = compile_for(capability, shared, width, k, is_deep, monkeypatch)
                check_products(capability, made["scan"])
                assert made["scan"].metadata.shared <= shared
                monkeypatch.undo()
                monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    @given(
        count=st.integers(1, triton_plan.MOST_KEYS),
        width=st.integers(1, 4096),
        k=st.integers(1, triton_plan.MOST_K),
        shared=st.sampled_from([49_152, 101_376, 166_912, 232_448]),
        has_wgmma=st.booleans(),
        query_tiles=st.integers(1, 10_000),
        programs=st.integers(1, 600),
        is_deep=st.booleans(),
    )
    def test_a_plan_covers_the_keys_and_fits_the_chip(
        count: int,
        width: int,
        k: int,
        shared: int,
        has_wgmma: bool,
        query_tiles: int,
        programs: int,
        is_deep: bool,
    ) -> None:
        columns = columns_of(width)
        assert width <= columns.padded < max(17, 2 * width + 64)
        tile = tile_for(columns, shared, has_wgmma)
        assert tile in (*HELD_TILES, *STREAMED_TILES)
        plan = plan_for(count, width, k, tile, query_tiles, programs, is_deep)
        tiles = -(-count // tile.keys)
        assert (plan.segments - 1) * plan.segment < tiles <= plan.segments * plan.segment
        assert plan.segment & (plan.segment - 1) == 0
        assert plan.entries(tile) <= MOST_ENTRIES
        assert tile.keys % (plan.group * tile.lanes) == 0
        assert plan.taken_bits(tile) <= 12
        assert plan.room >= 2 * k

    def test_tiles_shrink_with_the_chip() -> None:
        assert tile_for(columns_of(512), 232_448, True) == STREAMED_TILES[0]
        assert tile_for(columns_of(512), 166_912, False) == STREAMED_TILES[1]
        assert tile_for(columns_of(256), 232_448, True) == HELD_TILES[0]
        assert tile_for(columns_of(256), 101_376, False) == HELD_TILES[2]

    def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match="needs the package triton and an NVIDIA GPU"):
            build_searcher(np.ones((2, 2), np.float32), "triton")
        monkeypatch.setattr(sys, "argv", ["bench"])
        runpy.run_path(str(BENCHMARK), run_name="__main__")
        assert capsys.readouterr().out.startswith("No NVIDIA GPU")

    def test_too_many_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton_backend, "has_gpu", lambda: True)
        monkeypatch.setattr(triton_backend, "MOST_KEYS", 4)
        with pytest.raises(InputError, match="at most 4 keys, got 5"):
            build_searcher(np.arange(10, dtype=np.float32).reshape(5, 2), "triton")

    def test_auto_takes_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(searcher, "has_gpu", lambda: True)
        assert searcher.fastest_backend(1000, 64, device="cuda") == "triton"
        assert searcher.fastest_backend(triton_plan.MOST_KEYS + 1, 64, device="cuda") == "torch"

    @pytest.mark.gpu
    @pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU of compute capability 8.0 or later")
    @pytest.mark.parametrize("width", [33, 64, 128, 256, 300, 1024])
    def test_a_gpu_gives_the_same(width: int) -> None:
        rng = np.random.default_rng(width)
        for kind in KINDS:
            for count, k, asked in ((2000, 10, 300), (129, 1, 5), (700, 128, 130), (1, 1, 1)):
                keys = make_keys(kind, rng, count, width)
                check(keys, queries_near(keys, rng, asked), min(k, count), None)

    @pytest.mark.gpu
    @pytest.mark.slow
    @pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU of compute capability 8.0 or later")
    @pytest.mark.parametrize("k", [1, 10, 128])
    def test_a_gpu_agrees_with_the_processor_on_a_large_bank(k: int) -> None:
        rng = np.random.default_rng(8)
        keys, queries = unit(rng, 100_000, 96), unit(rng, 3000, 96)
        found = build_searcher(keys, "triton").search(queries, k)
        expected = build_searcher(keys, "torch", 8).search(queries, k)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
