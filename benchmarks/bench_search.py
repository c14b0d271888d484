"""How much faster is exact search than faiss's flat index held on its BLAS path, and than others?

    OMP_NUM_THREADS=1 python benchmarks/bench_search.py                      # everything, about half an hour
    OMP_NUM_THREADS=1 python benchmarks/bench_search.py --cells random:50000:64:1:1024 --rivals native faiss

A cell is kind:keys:width:k:batch. Without --cells three parts run: the whole grid for `auto` and faiss; all rivals on
six named cells; these cells again with one and with two threads. Rivals run in turn (A B A B ...), every figure is the
median over the rounds, and answers of exact rivals are compared. One thread is timed by the CPU seconds of this
process, two by the clock: on a shared machine believe the first. Shares are of the fastest matrix product that torch
shows here, in float32, bfloat16 or int8, on as many threads.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from search_banks import REAL_WIDTH, Bank, Cell, make_rows

from xmatch.search import Searcher, build_searcher, native_backend

SHAPES = list(itertools.product((3_000, 50_000, 500_000), (64, 512)))
BANKS = [Bank(kind, *shape) for kind in ("random", "clustered", "near") for shape in SHAPES]
BANKS += [Bank("real", keys, REAL_WIDTH) for keys in (3_000, 50_000)]
GRID = [Cell(*bank, k, batch) for bank in BANKS for k, batch in itertools.product((1, 10), (64, 1024, 4096))]
NAMED = [
    Cell.parse(text)
    for text in (
        "random:3000:64:10:1024",
        "random:50000:64:10:1024",
        "random:50000:512:1:1024",
        "clustered:50000:512:10:1024",
        "near:50000:64:1:1024",
        "real:50000:256:10:1024",
    )
]
EXACT = ("auto", "portable", "native", "torch", "faiss_certified")
OTHERS = ("faiss", "numpy", "torch_fp32", "torch_bf16", "usearch")
QUICK_S = 0.02
"""A search is repeated until it takes this long: the clock of CPU seconds is coarse."""

Rival = Callable[[np.ndarray, int], object]


def faiss_flat(keys: np.ndarray, threads: int) -> Rival:
    """The flat index over keys (N, D), held on its BLAS path."""
    import faiss

    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = 1
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    return lambda queries, k: index.search(queries, k)


def numpy_flat(keys: np.ndarray, threads: int) -> Rival:
    """Products with keys (N, D) and a partial sort."""

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
    """Exact search over keys (N, D) by usearch."""
    from usearch.index import MetricKind, search

    return lambda queries, k: search(keys, queries, k, MetricKind.IP, exact=True, threads=threads)


RIVALS: dict[str, Callable[[np.ndarray, int], Rival]] = {
    "faiss": faiss_flat,
    "numpy": numpy_flat,
    "torch_fp32": torch_flat(torch.float32),
    "torch_bf16": torch_flat(torch.bfloat16),
    "usearch": usearch_exact,
}


def exact_searcher(name: str, keys: np.ndarray, threads: int) -> Searcher:
    """One of ours over keys (N, D); `portable` is what `auto` takes without the extension."""
    if name != "portable":
        return build_searcher(keys, name.removesuffix("_certified"), threads)
    with mock.patch.object(native_backend, "instruction_sets", lambda kind: ()):
        return build_searcher(keys, "auto", threads)


def matrix_peaks(threads: int, size: int = 2048) -> dict[str, float]:
    """Multiply-adds a second of torch's products, the best of five each."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    products = {
        "float32": (torch.float32, torch.mm),
        "bfloat16": (torch.bfloat16, torch.mm),
        "int8": (torch.int8, torch._int_mm),
    }
    peaks = {}
    for name, (dtype, product) in products.items():
        left = torch.ones((size, size), dtype=dtype)
        times = []
        for _ in range(5):
            start = clock()
            product(left, left)
            times.append(clock() - start)
        peaks[name] = size**3 / max(1e-9, min(times))
    return peaks


class Contest:
    """Rivals over one bank of keys, each built once."""

    def __init__(self, bank: Bank, rivals: Sequence[str], threads: int) -> None:
        self.bank, self.threads = bank, threads
        self.keys, self.queries = make_rows(bank)
        self.searchers: dict[str, Searcher] = {}
        self.searches: dict[str, Rival] = {}
        for name in rivals:
            if name in EXACT:
                self.searchers[name] = exact_searcher(name, self.keys, threads)
                self.searches[name] = self.searchers[name].search
                continue
            try:
                self.searches[name] = RIVALS[name](self.keys, threads)
            except ImportError:
                print(f"{name} is not installed: skipped", flush=True)

    def run(self, cell: Cell, rounds: int, peak: float) -> Iterator[str]:
        """A row of the table for each rival."""
        queries, clock = self.queries[: cell.batch], time.process_time if self.threads == 1 else time.perf_counter
        answers, repeats = {}, {}
        for name, search in self.searches.items():
            start = clock()
            answers[name] = search(queries, cell.k)  # warm, and decides how a bank is scanned
            repeats[name] = 1 + int(QUICK_S / max(1e-6, clock() - start))
        before = {name: searcher.counts for name, searcher in self.searchers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in self.searches}
        for _ in range(rounds):
            for name, search in self.searches.items():
                start = clock()
                for _ in range(repeats[name]):
                    search(queries, cell.k)
                seconds[name].append((clock() - start) / repeats[name])
        exact = [answers[name] for name in self.searchers]
        same = all(np.array_equal(found.ids, exact[0].ids) for found in exact)  # type: ignore[attr-defined]
        for name, times in seconds.items():
            rate = len(queries) / statistics.median(times)
            against = statistics.median(a / b for a, b in zip(seconds.get("faiss", times), times, strict=True))
            row = [":".join(map(str, cell)), name, f"{rate:,.0f}", f"{against:.2f}"]
            row += [f"{rate * self.keys.size / peak:.0%}", *self._counts(name, before, same)]
            yield "| " + " | ".join(row) + " |"

    def _counts(self, name: str, before: dict[str, object], same: bool) -> list[str]:
        if name not in self.searchers:
            return ["", "", ""]
        searcher, earlier = self.searchers[name], before[name]
        asked = searcher.counts.queries - earlier.queries  # type: ignore[attr-defined]
        candidates = searcher.counts.candidates - earlier.candidates  # type: ignore[attr-defined]
        fallbacks = searcher.counts.fallbacks - earlier.fallbacks  # type: ignore[attr-defined]
        kind = getattr(searcher._scan, "kind", None) or searcher.backend
        return [f"{candidates / asked:.1f}", str(fallbacks), f"{kind}{'' if same else ' DIFFERS'}"]


def table(title: str, cells: Sequence[Cell], rivals: Sequence[str], rounds: int, threads: int) -> None:
    """Run some cells and print them; a bank is made once for all cells that stand together."""
    peaks = matrix_peaks(threads)
    print(
        f"\n## {title}\n\n{threads} thread(s), {rounds} rounds, load {os.getloadavg()[0]:.1f}; matrix products ", end=""
    )
    print(", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in peaks.items()) + " G multiply-adds/s\n")
    print("| cell | rival | queries/s | ratio to faiss | share of peak | candidates/query | fallbacks | scan |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for bank, group in itertools.groupby(cells, key=lambda cell: cell.bank):
        contest = Contest(bank, rivals, threads)
        for cell in group:
            for row in contest.run(cell, rounds, max(peaks.values())):
                print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", type=Cell.parse)
    parser.add_argument("--rivals", nargs="*", choices=[*EXACT, *OTHERS], default=["faiss", "auto"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sets = {kind: native_backend.instruction_sets(kind) for kind in ("int8", "bf16")}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, instruction sets {sets}")
    if args.cells:
        table("Chosen cells", args.cells, args.rivals, args.rounds, args.threads)
        return
    table("The grid", GRID, ["faiss", "auto"], args.rounds, 1)
    everyone = ["faiss", "auto", "torch", "faiss_certified", "numpy", "torch_fp32", "torch_bf16", "usearch"]
    table("All rivals on six cells", NAMED, everyone, args.rounds, 1)
    for threads in (1, 2):
        table(f"Six cells, {threads} thread(s)", NAMED, ["faiss", "auto"], args.rounds, threads)


if __name__ == "__main__":
    main()
