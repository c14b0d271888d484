"""How fast is exact search on a GPU, against faiss, torch and flashlib, and how near to what a matrix product reaches?

    python benchmarks/bench_search_gpu.py --cells 50000:256:10:8192 --rivals triton faiss_bf16 torch_bf16
    python benchmarks/bench_search_gpu.py --interpret     # no GPU: everything but the times, on tiny shapes

A cell is keys:width:k:queries; without --cells the whole grid runs. Keys and queries are random unit vectors, and lie
on the GPU before the clock starts; `searcher` alone is given them in main memory, as a caller of Searcher would be.
Rivals run in turn (A B A B ...), a figure is the median over the rounds by CUDA events, and TFLOP/s count the products
alone. Only `triton` and `searcher` are exact; how often the others find the same best keys is printed beside. With
--tiles each tile is tried, to see which of them this GPU likes best.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from xmatch.search import Searcher, build_searcher
from xmatch.search.exact import Keys, SearchCounts
from xmatch.search.scores import norms
from xmatch.search.triton_backend import TritonScan, has_gpu
from xmatch.search.triton_plan import HELD_TILES, STREAMED_TILES, Tile

GRID = itertools.product((50_000, 500_000), (64, 256, 512), (1, 10, 128), (1024, 8192, 65536))
TINY = ((300, 24, 3, 40), (130, 70, 1, 17))
SMALL_TILE = Tile(16, 32, 4, 4, 2)
SCORES = 1 << 28
"""Scores that torch's rivals hold at a time."""


class Cell(NamedTuple):
    """One shape of the grid."""

    keys: int
    width: int
    k: int
    queries: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        numbers = text.split(":")
        if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
            raise SystemExit(f"expected a cell keys:width:k:queries, got {text!r}")
        return cls(*map(int, numbers))


class Bank(NamedTuple):
    """Keys (N, D) in main memory and on the device."""

    keys: np.ndarray
    held: torch.Tensor


Search = Callable[[torch.Tensor, int], torch.Tensor]
"""Queries (Q, D) float32 on the device and k to rows (Q, k)."""


def unit_rows(seed: int, count: int, width: int, device: str) -> torch.Tensor:
    """Random unit rows (N, D) float32 on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator, device=device))


def torch_best(dtype: torch.dtype) -> Callable[[Bank], Search]:
    def build(bank: Bank) -> Search:
        held = bank.held.to(dtype)

        def search(queries: torch.Tensor, k: int) -> torch.Tensor:
            step = max(1, SCORES // len(held))
            parts = queries.to(dtype).split(step)
            return torch.cat([(part @ held.T).topk(k).indices for part in parts])

        return search

    return build


def faiss_best(dtype: torch.dtype) -> Callable[[Bank], Search]:
    def build(bank: Bank) -> Search:
        import faiss
        import faiss.contrib.torch_utils

        if not hasattr(faiss, "StandardGpuResources"):
            raise ImportError("this faiss is the one for processors")
        resources, held = faiss.StandardGpuResources(), bank.held.to(dtype)

        def search(queries: torch.Tensor, k: int) -> torch.Tensor:
            return faiss.knn_gpu(resources, queries.to(dtype), held, k, metric=faiss.METRIC_INNER_PRODUCT)[1]

        return search

    return build


def faiss_index(bank: Bank) -> Search:
    import faiss
    import faiss.contrib.torch_utils

    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("this faiss is the one for processors")
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), bank.keys.shape[1])
    index.add(bank.held)
    return lambda queries, k: index.search(queries, k)[1]


def flashlib_best(bank: Bank) -> Search:
    from flashlib import flash_knn

    held = bank.held.to(torch.bfloat16)
    # by distance, which orders unit vectors as the inner product does
    return lambda queries, k: flash_knn(queries.to(torch.bfloat16), held, k, return_distances=False)


RIVALS: dict[str, Callable[[Bank], Search]] = {
    "torch_bf16": torch_best(torch.bfloat16),
    "torch_fp32": torch_best(torch.float32),
    "faiss_bf16": faiss_best(torch.bfloat16),
    "faiss_fp32": faiss_best(torch.float32),
    "faiss_index": faiss_index,
    "flashlib": flashlib_best,
}


class Exact(NamedTuple):
    """An exact rival: how it searches, and what its searches took so far."""

    search: Search
    counts: Callable[[], SearchCounts]


def exact_scan(bank: Bank, device: str, tile: Tile | None) -> Exact:
    scan = TritonScan(Keys(bank.keys, norms(bank.keys)), 1, device, tile)
    total = [SearchCounts()]

    def search(queries: torch.Tensor, k: int) -> torch.Tensor:
        found = scan.top_of(queries, k)
        total[0] = total[0].plus(found.counts)
        return found.rows

    return Exact(search, lambda: total[0])


def exact_searcher(bank: Bank) -> Exact:
    searcher: Searcher = build_searcher(bank.keys, "triton")
    # the queries start and the results end in main memory
    return Exact(
        lambda queries, k: torch.from_numpy(searcher.search(queries.cpu().numpy(), k).ids), lambda: searcher.counts
    )


def seconds_of(action: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start_event.record()
    action()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1000


def matrix_peak(device: str) -> float:
    """FLOP/s of a bfloat16 matrix product on random data, the best of ten after three."""
    size = 8192 if device != "cpu" else 64
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    times = [seconds_of(lambda: left @ right, device) for _ in range(13)]
    return 2 * size**3 / max(1e-9, min(times[3:]))


def rivals_of(names: list[str], bank: Bank, device: str, tiles: list[Tile | None]) -> dict[str, Exact | Search]:
    found: dict[str, Exact | Search] = {}
    for name in names:
        try:
            if name == "triton":
                for tile in tiles:
                    label = name if len(tiles) == 1 else f"triton {'x'.join(map(str, tile or ()))}"
                    found[label] = exact_scan(bank, device, tile)
            else:
                found[name] = exact_searcher(bank) if name == "searcher" else RIVALS[name](bank)
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def measure(cell: Cell, names: list[str], rounds: int, device: str, tiles: list[Tile | None], peak: float) -> list[str]:
    held = unit_rows(1, cell.keys, cell.width, device)
    queries = unit_rows(2, cell.queries, cell.width, device)
    rivals = rivals_of(names, Bank(held.cpu().numpy(), held), device, tiles)
    answers, seconds, failures = {}, {name: [] for name in rivals}, {}
    for name, rival in list(rivals.items()):
        search = rival.search if isinstance(rival, Exact) else rival
        try:
            answers[name] = [search(queries, cell.k) for _ in range(2)][-1].cpu()
        except (RuntimeError, MemoryError) as error:  # a tile too large, a k beyond a rival's limit, no memory left
            failures[name] = str(error).splitlines()[0][:80]
            del rivals[name]
    for _ in range(rounds):
        for name, rival in rivals.items():
            search = rival.search if isinstance(rival, Exact) else rival
            seconds[name].append(seconds_of(lambda search=search: search(queries, cell.k), device))
    exact = next((answers[name] for name, rival in rivals.items() if isinstance(rival, Exact)), None)
    lines = [row_of(cell, name, rivals[name], seconds, answers[name], exact, peak, device) for name in rivals]
    return lines + [f"| {':'.join(map(str, cell))} | {name} | failed: {text} |" for name, text in failures.items()]


def row_of(
    cell: Cell,
    name: str,
    rival: Exact | Search,
    seconds: dict[str, list[float]],
    answer: torch.Tensor,
    exact: torch.Tensor | None,
    peak: float,
    device: str,
) -> str:
    """A row of the table; `answer` and `exact` are rows of keys (Q, k)."""
    row = [":".join(map(str, cell)), name]
    if device == "cpu":
        row += ["-", "-", "-", "-"]
    else:
        middle = statistics.median(seconds[name])
        rate = 2 * cell.keys * cell.width * cell.queries / middle
        first = next(iter(seconds))
        against = statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        row += [f"{middle * 1e3:.3f}", f"{rate / 1e12:.0f}", f"{rate / peak:.2f}", f"{against:.2f}"]
    row.append("-" if exact is None else f"{float((answer == exact).float().mean()):.4f}")
    if isinstance(rival, Exact):
        counts = rival.counts()
        row += [f"{counts.candidates / counts.queries:.1f}", f"{counts.fallbacks / counts.queries:.4f}"]
    else:
        row += ["", ""]
    return "| " + " | ".join(row) + " |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", type=Cell.parse)
    parser.add_argument("--rivals", nargs="*", choices=["triton", "searcher", *RIVALS])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiles", action="store_true", help="try every tile")
    parser.add_argument("--interpret", action="store_true", help="run on the processor, without times")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which a search does
    elif not has_gpu():
        print("No NVIDIA GPU of compute capability 8.0 or later is here, so nothing was measured (try --interpret).")
        return
    device = "cpu" if args.interpret else "cuda"
    cells = args.cells or map(Cell._make, TINY if args.interpret else GRID)
    names = args.rivals or ["triton", "searcher", *(name for name in RIVALS)]
    peak = matrix_peak(device)
    if args.interpret:
        print("interpreted on the processor: no times")
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.rounds} rounds;", end=" ")
        print(f"a bfloat16 matrix product of 8192 reaches {peak / 1e12:.0f} TFLOP/s")
    print("| cell | rival | ms | TFLOP/s | share of product | ratio to first | same rows | candidates | fallbacks |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for cell in cells:
        tiles: list[Tile | None] = [SMALL_TILE] if args.interpret else [None]
        if args.tiles and not args.interpret:
            tiles = list(HELD_TILES if cell.width <= 256 else STREAMED_TILES)
        print("\n".join(measure(cell, names, args.rounds, device, tiles, peak)), flush=True)


if __name__ == "__main__":
    main()
