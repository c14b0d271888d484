"""How much faster is exact search than faiss's flat index held on its BLAS path, and than others?

    OMP_NUM_THREADS=1 python benchmarks/bench_search.py --cells random:50000:64:1:1024 --rivals native faiss

A cell is kind:keys:width:k:batch; without --cells the whole grid runs. Rivals run in turn (A B A B ...), every figure
is CPU seconds of this process, the median over the rounds, and answers of exact rivals are compared. Run it with one
thread; --threads gives the search two.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from xmatch.search import Searcher, build_searcher, native_backend

KINDS = ("random", "clustered", "duplicates", "near")
GRID = itertools.product(KINDS, (3_000, 50_000, 500_000), (64, 512), (1, 10), (64, 1024, 4096))
EXACT = ("auto", "native", "torch", "faiss_certified")
OTHERS = ("faiss", "numpy", "torch_fp32", "torch_bf16", "usearch")


class Cell(NamedTuple):
    """One shape of the grid."""

    kind: str
    keys: int
    width: int
    k: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        kind, *numbers = text.split(":")
        if kind not in KINDS or len(numbers) != 4:
            raise SystemExit(f"expected a cell kind:keys:width:k:batch with a kind of {', '.join(KINDS)}, got {text!r}")
        return cls(kind, *map(int, numbers))


Rival = Callable[[np.ndarray, int], object]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_rows(cell: Cell, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random rows; 500 clusters, noise 0.35 of the centre; these with a tenth of exact or near copies."""
    rng = np.random.default_rng(seed)
    shape = (cell.keys, cell.width)
    if cell.kind == "random":
        return unit(rng.standard_normal(shape)), unit(rng.standard_normal((cell.batch, cell.width)))
    centres = unit(rng.standard_normal((500, cell.width)))
    spread = 0.35 / np.sqrt(cell.width)

    def around(count: int) -> np.ndarray:
        return unit(centres[rng.integers(0, 500, count)] + spread * rng.standard_normal((count, cell.width)))

    keys, queries = around(cell.keys), around(cell.batch)
    if cell.kind != "clustered":
        copies = rng.choice(cell.keys, cell.keys // 10, replace=False)
        keys[copies] = keys[rng.integers(0, cell.keys, len(copies))]
        if cell.kind == "near":
            keys[copies] = unit(keys[copies] + 1e-6 * rng.standard_normal((len(copies), cell.width)))
    return keys, queries


def faiss_flat(keys: np.ndarray, threads: int) -> Rival:
    import faiss

    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = 1
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    return lambda queries, k: index.search(queries, k)


def numpy_flat(keys: np.ndarray, threads: int) -> Rival:
    def search(queries: np.ndarray, k: int) -> object:
        for start in range(0, len(queries), 256):
            scores = queries[start : start + 256] @ keys.T
            near = np.argpartition(scores, -k, axis=1)[:, -k:]
            np.argsort(-np.take_along_axis(scores, near, 1), axis=1)
        return None

    return search


def torch_flat(dtype: torch.dtype) -> Callable[[np.ndarray, int], Rival]:
    def build(keys: np.ndarray, threads: int) -> Rival:
        torch.set_num_threads(threads)
        held = torch.from_numpy(keys).to(dtype)

        def search(queries: np.ndarray, k: int) -> object:
            asked = torch.from_numpy(queries).to(dtype)
            return [(asked[start : start + 256] @ held.T).topk(k, dim=1) for start in range(0, len(asked), 256)]

        return search

    return build


def usearch_exact(keys: np.ndarray, threads: int) -> Rival:
    from usearch.index import MetricKind, search

    return lambda queries, k: search(keys, queries, k, MetricKind.IP, exact=True, threads=threads)


RIVALS: dict[str, Callable[[np.ndarray, int], Rival]] = {
    "faiss": faiss_flat,
    "numpy": numpy_flat,
    "torch_fp32": torch_flat(torch.float32),
    "torch_bf16": torch_flat(torch.bfloat16),
    "usearch": usearch_exact,
}


def matrix_peak(size: int = 1024) -> float:
    """Multiply-adds a second of a float32 matrix product on one thread, the best of five."""
    left = np.ones((size, size), np.float32)
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        left @ left
        best = max(best, size**3 / max(1e-9, time.process_time() - start))
    return best


def measure(cell: Cell, rivals: list[str], rounds: int, threads: int, peak: float) -> list[str]:
    keys, queries = make_rows(cell)
    searches: dict[str, Rival] = {}
    searchers: dict[str, Searcher] = {}
    for name in rivals:
        if name in EXACT:
            searchers[name] = build_searcher(keys, name.removesuffix("_certified"), threads)
            searches[name] = searchers[name].search
            continue
        try:
            searches[name] = RIVALS[name](keys, threads)
        except ImportError:
            print(f"{name} is not installed: skipped", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    answers = {name: search(queries, cell.k) for name, search in searches.items()}  # warm, and decides int8 or bf16
    before = {name: searcher.counts for name, searcher in searchers.items()}
    for _ in range(rounds):
        for name, search in searches.items():
            start = time.process_time()
            search(queries, cell.k)
            seconds[name].append(time.process_time() - start)
    exact = [answers[name] for name in searchers]
    same = all(np.array_equal(found.ids, exact[0].ids) for found in exact)
    lines = []
    for name, times in seconds.items():
        middle = statistics.median(times)
        rate = len(queries) / middle
        against = statistics.median(a / b for a, b in zip(seconds.get("faiss", times), times, strict=True))
        row = [":".join(map(str, cell)), name, f"{rate:,.0f}", f"{against:.2f}", f"{rate * keys.size / peak:.2f}"]
        row += ["", "", ""]
        if name in searchers:
            counts = searchers[name].counts
            asked = counts.queries - before[name].queries
            kind = getattr(searchers[name]._scan, "kind", None) or searchers[name].backend
            row[5:] = [
                f"{(counts.candidates - before[name].candidates) / asked:.1f}",
                str(counts.fallbacks - before[name].fallbacks),
                f"{kind}{'' if same else ' DIFFERS'}",
            ]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", type=Cell.parse)
    parser.add_argument("--rivals", nargs="*", choices=[*EXACT, *OTHERS], default=["faiss", "auto"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.0f}, {args.threads} thread(s),",
        end="",
    )
    print(f" {args.rounds} rounds, instruction sets {native_backend.instruction_sets('int8')}")
    peak = matrix_peak()
    print(f"float32 matrix product: {peak / 1e9:.0f} G multiply-adds/s on one thread")
    print("| cell | rival | queries/s | ratio to faiss | share of the product | candidates/query | fallbacks | scan |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for cell in args.cells or map(Cell._make, GRID):
        print("\n".join(measure(cell, args.rivals, args.rounds, args.threads, peak)), flush=True)


if __name__ == "__main__":
    main()
