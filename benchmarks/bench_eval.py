"""How long ranking takes: one argsort per query, as the original programs do it, against counting block by block.

    python benchmarks/bench_eval.py --images 5000 --width 1024 --runs 3

Random unit embeddings, five captions an image. Four pairs are run, each way in a process of its own and in turn:
    VSE++                    one product and one argsort per query, float64, as its evaluation loops
    VSE-infinity             one float64 product, then one argsort per query of its rows and of its columns
    VSE-infinity in float32  the same in our precision
    saved matrix             only the ranks, from a float32 .npy on disk
Times are processor seconds, which other work on the machine disturbs less than the clock; wall seconds go to standard
error. Counting always takes float32. Memory (Linux) is the peak above the process that has imported everything and
holds no data, so embeddings count, and so do pages of a mapped file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from xmatch.evaluation.ranks import caption_ranks
from xmatch.evaluation.similarities import EmbeddingSimilarities, Similarities, open_similarities

CAPTIONS = 5
PAIRS = {
    "VSE++": ("loop", "float64", "embeddings"),
    "VSE-infinity": ("argsort", "float64", "embeddings"),
    "VSE-infinity in float32": ("argsort", "float32", "embeddings"),
    "saved matrix": ("argsort", "float32", "matrix"),
}


def embeddings(images: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm (N, D) and (5N, D) float32; captions lie near their image."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, width), dtype=np.float32)
    text = rng.standard_normal((images * CAPTIONS, width), dtype=np.float32)
    text += 0.1 * np.repeat(image, CAPTIONS, axis=0)
    for rows in (image, text):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return image, text


def argsort_ranks(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1-based ranks (of shape (N,), (5N,)) from scores (N, 5N): a full sort per query, where each match is sought."""
    images = len(scores)
    by_image, by_caption = np.empty(images, np.int64), np.empty(images * CAPTIONS, np.int64)
    for image in range(images):
        order = np.argsort(scores[image])[::-1]
        own = range(CAPTIONS * image, CAPTIONS * (image + 1))
        by_image[image] = 1 + min(int(np.where(order == caption)[0][0]) for caption in own)
    columns = scores.T
    for caption in range(images * CAPTIONS):
        order = np.argsort(columns[caption])[::-1]
        by_caption[caption] = 1 + int(np.where(order == caption // CAPTIONS)[0][0])
    return by_image, by_caption


def loop_ranks(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1-based ranks (of shape (N,), (5N,)) from vectors (N, D), (5N, D): a product and a full sort per query."""
    images = len(image)
    by_image, by_caption = np.empty(images, np.int64), np.empty(images * CAPTIONS, np.int64)
    for row in range(images):
        own = range(CAPTIONS * row, CAPTIONS * (row + 1))
        order = np.argsort(image[row : row + 1].dot(text.T).flatten())[::-1]
        by_image[row] = 1 + min(int(np.where(order == caption)[0][0]) for caption in own)
        for caption, scores in zip(own, text[own.start : own.stop].dot(image.T)):
            by_caption[caption] = 1 + int(np.where(np.argsort(scores)[::-1] == row)[0][0])
    return by_image, by_caption


def peak_kb() -> int:
    """Highest resident memory of this process since it was started."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def run_one(way: str, kind: str, dtype: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Seconds, peak memory and mean ranks of one way."""
    base = peak_kb()
    image, text = embeddings(arguments.images, arguments.width) if kind == "embeddings" else (None, None)
    if way != "counting" and image is not None:
        image, text = image.astype(dtype), text.astype(dtype)
    started, started_cpu = time.perf_counter(), time.process_time()
    if way == "loop":
        ranks = loop_ranks(image, text)
    elif way == "argsort":
        ranks = argsort_ranks(np.load(arguments.matrix) if image is None else image @ text.T)
    else:
        source: Similarities = (
            open_similarities(arguments.matrix) if image is None else EmbeddingSimilarities(image, text)
        )
        owners = np.repeat(np.arange(arguments.images), CAPTIONS)
        ranks = tuple(one.ranks for one in caption_ranks(source, owners))
    seconds, wall = time.process_time() - started_cpu, time.perf_counter() - started
    return {
        "seconds": seconds,
        "wall": wall,
        "peak_mb": (peak_kb() - base) / 1024,
        "mean": [float(one.mean()) for one in ranks],
    }


def in_a_process(way: str, kind: str, dtype: str, arguments: argparse.Namespace) -> dict[str, object]:
    """`run_one` in a fresh process with a fixed number of threads."""
    threads = {f"{name}_NUM_THREADS": str(arguments.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, __file__, "--images", str(arguments.images), "--width", str(arguments.width)]
    command += ["--one", way, kind, dtype, "--matrix", arguments.matrix]
    root = str(Path(__file__).parents[1])
    environment = os.environ | threads | {"PYTHONPATH": root}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=list(PAIRS), help="one pair instead of all")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--matrix", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(*arguments.one, arguments)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread(s), numpy {np.__version__}, ", end=""
    )
    print(f"{arguments.images} images x {arguments.images * CAPTIONS} captions, width {arguments.width}\n")
    print(
        "| originals' way | its CPU seconds | counting | ratio (median of pairs) | its peak MB | counting's peak MB |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        arguments.matrix = str(Path(folder) / "scores.npy")
        image, text = embeddings(arguments.images, arguments.width)
        np.save(arguments.matrix, image @ text.T)
        del image, text
        for name, (original, dtype, kind) in PAIRS.items():
            if arguments.only not in (None, name):
                continue
            pairs = [
                [in_a_process(way, kind, dtype, arguments) for way in (original, "counting")]
                for _ in range(arguments.runs)
            ]
            seconds = [statistics.median(pair[i]["seconds"] for pair in pairs) for i in (0, 1)]
            peaks = [max(pair[i]["peak_mb"] for pair in pairs) for i in (0, 1)]
            ratio = statistics.median(pair[0]["seconds"] / pair[1]["seconds"] for pair in pairs)
            print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} |")
            walls = [[round(one["wall"], 2) for one in pair] for pair in pairs]
            print(f"{name}: wall seconds of the pairs {walls}", file=sys.stderr)
            print(f"{name}: mean ranks {pairs[0][0]['mean']}, counting {pairs[0][1]['mean']}", file=sys.stderr)


if __name__ == "__main__":
    main()
