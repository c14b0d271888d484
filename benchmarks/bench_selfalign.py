"""What does scoring every image with every caption cost, by factored search, directly, and by cross attention?

    OMP_NUM_THREADS=1 python benchmarks/bench_selfalign.py                  # CAMERA with SelfAlign, 5,000 x 25,000
    OMP_NUM_THREADS=1 python benchmarks/bench_selfalign.py --views 1        # VSRN with SelfAlign
    OMP_NUM_THREADS=1 python benchmarks/bench_selfalign.py --images 500 --captions 2500 --dim 256 --shared 512

Made-up vectors of the shapes that the models give: of an image V views of `dim` numbers, unit, and `shared` numbers
behind each; captions lie near a view of their image. Rivals, in turn in every round, one thread, CPU seconds:

    factored          exact search in parts: the best k images of every caption and captions of every image, one pass
    direct            float32 products of the whole vectors, the best view, the best k of the full matrix both ways
    cross attention   SCAN, text to image: 36 regions and about 12 words of width 1,024, scores alone, no ranking;
                      measured on a sample of the pairs and scaled to all

Factored and direct must rank alike: a place in a list may differ only where direct's own two scores are closer than
float32 sums are exact.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from xmatch.evaluation.cross_attention import CrossAttentionConfig, Sets, cross_attention_scores, sets_of
from xmatch.search.exact import SearchCounts, SearchResult
from xmatch.search.factored import factor
from xmatch.search.factored_searcher import BothWays, FactoredSearcher

REGIONS, REGION_WIDTH = 36, 1024
WORDS = (6, 18)
"""Least and greatest length of a caption; 12 in the mean."""
STRIP = 200
"""Images multiplied at a time by the direct computation."""
CAPTION_STRIP = 5000


class Vectors(NamedTuple):
    """Whole image vectors (N V, E), and captions (M, E)."""

    images: np.ndarray
    captions: np.ndarray


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random unit rows (N, D) float32."""
    rows = rng.standard_normal((count, width), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make_vectors(arguments: argparse.Namespace) -> Vectors:
    """Unit views, what they share of norm 0.7, and captions near one of their image's views."""
    rng = np.random.default_rng(0)
    count, views, dim, shared = arguments.images, arguments.views, arguments.dim, arguments.shared
    images = np.empty((count * views, dim + shared), np.float32)
    captions = np.empty((arguments.captions, dim + shared), np.float32)
    for start in range(0, count, STRIP):
        part = images[start * views : (start + STRIP) * views]
        part[:, :dim] = unit(rng, len(part), dim)
        part[:, dim:] = np.repeat(np.float32(0.7) * unit(rng, len(part) // views, shared), views, axis=0)
    owners = np.arange(arguments.captions) * count // arguments.captions
    for start in range(0, arguments.captions, STRIP):
        part, own = captions[start : start + STRIP], owners[start : start + STRIP]
        near = images[own * views + rng.integers(0, views, len(own))]
        part[:, :dim] = unit(rng, len(part), dim) + np.float32(0.1) * near[:, :dim]
        part[:, :dim] /= np.linalg.norm(part[:, :dim], axis=1, keepdims=True)
        part[:, dim:] = unit(rng, len(part), shared) + np.float32(0.1) * near[:, dim:]
    return Vectors(images, captions)


def direct_scores(vectors: Vectors, views: int) -> np.ndarray:
    """(N, M) float32, the best view of each image."""
    scores = np.empty((len(vectors.images) // views, len(vectors.captions)), np.float32)
    for start in range(0, len(scores), STRIP):
        rows = vectors.images[start * views : (start + STRIP) * views]
        for left in range(0, len(vectors.captions), CAPTION_STRIP):
            found = rows @ vectors.captions[left : left + CAPTION_STRIP].T
            found.reshape(-1, views, found.shape[1]).max(
                1, out=scores[start : start + STRIP, left : left + CAPTION_STRIP]
            )
    return scores


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) columns of the greatest scores, best first, equal ones by column."""
    lists = []
    for start in range(0, len(scores), STRIP):
        part = np.ascontiguousarray(scores[start : start + STRIP])
        near = np.sort(np.argpartition(part, -k, axis=1)[:, -k:], axis=1)
        order = np.argsort(-np.take_along_axis(part, near, 1), axis=1, kind="stable")
        lists.append(np.take_along_axis(near, order, 1))
    return np.concatenate(lists)


def differing(found: SearchResult, scores: np.ndarray, lists: np.ndarray, error: float) -> int:
    """Queries whose lists (Q, k) differ; stops if one does by more than rounding."""
    rows = np.arange(len(lists))[:, None]
    gaps = np.abs(scores[rows, found.ids] - scores[rows, lists])
    if gaps.max() > error:
        raise SystemExit(
            f"factored and direct rank differently: scores {gaps.max():.3g} apart, rounding is {error:.3g}"
        )
    return int((found.ids != lists).any(1).sum())


def make_sets(images: int, captions: int) -> tuple[Sets, Sets]:
    """Regions and words for the cross attention."""
    rng = np.random.default_rng(1)
    regions = torch.from_numpy(unit(rng, images * REGIONS, REGION_WIDTH)).view(images, REGIONS, REGION_WIDTH)
    lengths = torch.from_numpy(rng.integers(WORDS[0], WORDS[1] + 1, captions))
    words = torch.from_numpy(unit(rng, captions * WORDS[1], REGION_WIDTH)).view(captions, WORDS[1], REGION_WIDTH)
    return sets_of(regions), sets_of(words, lengths)


Found = TypeVar("Found")


def timed(work: Callable[[], Found]) -> tuple[float, Found]:
    """CPU seconds of this process, and what came of it."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def run(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of every round by rival, those of the cross attention scaled; prints how ranks compare."""
    vectors, k = make_vectors(arguments), arguments.k
    seconds: dict[str, list[float]] = {"factored": [], "direct": [], "cross attention": []}
    sample = min(arguments.images, arguments.sample_images), min(arguments.captions, arguments.sample_captions)
    sets = make_sets(*sample)
    scale = arguments.images * arguments.captions / (sample[0] * sample[1])
    norms = (np.linalg.norm(vectors.images, axis=1).max(), np.linalg.norm(vectors.captions, axis=1).max())
    error = 2 * vectors.images.shape[1] * 2.0**-24 * float(norms[0]) * float(norms[1])

    def factored() -> tuple[BothWays, SearchCounts]:
        searcher = FactoredSearcher(factor(vectors.images, arguments.views, arguments.dim))
        return searcher.search_both(vectors.captions, k), searcher.counts

    def direct() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores = direct_scores(vectors, arguments.views)
        return scores, best_rows(scores.T, k), best_rows(scores, k)

    for number in range(arguments.rounds):
        spent, (both, counts) = timed(factored)
        seconds["factored"].append(spent)
        spent, (scores, of_captions, of_images) = timed(direct)
        seconds["direct"].append(spent)
        spent, _ = timed(lambda: cross_attention_scores(*sets, CrossAttentionConfig()))
        seconds["cross attention"].append(spent * scale)
        unlike = differing(both.texts, scores.T, of_captions, error), differing(both.images, scores, of_images, error)
        del scores
        print(f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:,.1f} s" for name, times in seconds.items()))
        print(f"  lists that differ, by less than rounding: {unlike[0]} of captions, {unlike[1]} of images; {counts}")
    print(f"cross attention: {sample[0]} images x {sample[1]} captions, times {scale:,.0f}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--shared", type=int, default=4096)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample-images", type=int, default=200)
    parser.add_argument("--sample-captions", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    seconds = run(arguments)
    print("\n| rival | CPU seconds (median) | ratio to factored (median of rounds) |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["factored"], strict=True))
        print(f"| {name} | {statistics.median(times):,.1f} | {ratio:,.1f} |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
