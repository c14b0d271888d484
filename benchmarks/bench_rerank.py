"""How long re-ranking takes: one query and one candidate after the other, as the original does it, against ours.

    python benchmarks/bench_rerank.py

Random unit vectors, five captions an image, ten entities a caption. Two measurements:
    rounds  from vectors to lists: search and entities (EGR) in each direction, then both directions against each other
            (TBR). The loop scores a query against every candidate, its ten prompts and its ten masked captions too,
            makes a tuple of each, and sorts three times. It is run for some queries, its time scaled to all of them;
            ours is run for all, in turn with it. Both must give the same lists.
    whole   ours alone, in a process of its own: seconds, and peak memory.
Times are processor seconds, which other work on the machine disturbs less than the clock. Memory (Linux) is the peak
above the process that has imported everything and holds no data, so the vectors count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alignment.rerank.bidirectional import bidirectional_order
from alignment.rerank.candidates import Lists, search_lists
from alignment.rerank.entity_guided import entity_evidence, guided_lists
from alignment.rerank.entity_slots import EntitySlots, VectorRows
from alignment.rerank.pipeline import Vectors, evidence_of, pool_depths, pools_of, rerank
from alignment.rerank.settings import RerankSettings

CAPTIONS = 5
PAIRS = (("t2i", "i2t"), ("i2t", "t2i"))
NEAR = 1e-5
"""Scores that differ by less may come in either order: the loop adds in single precision."""


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random unit vectors (..., D) float32 of this shape."""
    rows = rng.standard_normal(shape, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows


def random_vectors(arguments: argparse.Namespace) -> Vectors:
    """Captions, prompts and masked captions lie near their image."""
    rng = np.random.default_rng(0)
    images = unit(rng, arguments.images, arguments.width)
    captions = arguments.images * CAPTIONS
    texts = unit(rng, captions, arguments.width)
    texts += 0.1 * np.repeat(images, CAPTIONS, 0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    entities = [np.empty((captions * arguments.slots, arguments.width), np.float32) for _ in range(2)]
    for start in range(0, captions, 500):
        near = np.repeat(texts[start : start + 500], arguments.slots, 0)
        for side, share in zip(entities, (0.5, 0.8)):
            rows = share * near + (1 - share) * unit(rng, *near.shape)
            side[start * arguments.slots : start * arguments.slots + len(rows)] = rows / np.linalg.norm(
                rows, axis=1, keepdims=True
            )
    places = np.arange(captions * arguments.slots).reshape(captions, arguments.slots)
    return Vectors(images, texts, EntitySlots(VectorRows([entities[0]]), VectorRows([entities[1]]), places, places))


def loop_texts(vectors: Vectors, queries: list[int], pool: int, top_k: int) -> tuple[float, list[list[int]]]:
    """Text to image, a query at a time, over all images; CPU seconds and lists."""
    started, found = time.process_time(), []
    for query in queries:
        scores = (vectors.images @ vectors.texts[query]).tolist()
        own = vectors.slots.prompt_rows[query]
        masked = np.array(
            [(vectors.images @ vectors.slots.masks.take(np.array([row]))[0]).tolist() for row in own]
        ).T.tolist()
        prompts = np.mean(
            np.array([(vectors.images @ vectors.slots.prompts.take(np.array([row]))[0]).tolist() for row in own]), 0
        ).tolist()
        tuples = []
        for image, (score, prompt, masks) in enumerate(zip(scores, prompts, masked)):
            first = 0.9 * score + 0.1 * sum([score - mask for mask in masks])
            tuples.append((image, score, first, 0.99 * first + 0.01 * prompt))
        found.append(three_sorts(tuples, pool, top_k))
    return time.process_time() - started, found


def loop_images(vectors: Vectors, queries: list[int], pool: int, top_k: int) -> tuple[float, list[list[int]]]:
    """Image to text, a query at a time, over all captions; CPU seconds after laying out its ten arrays, and lists."""
    slots = vectors.slots
    size = slots.prompt_rows.shape[1]
    by_slot = [
        (slots.prompts.take(slots.prompt_rows[:, at]), slots.masks.take(slots.mask_rows[:, at])) for at in range(size)
    ]
    started = time.process_time()
    found = []
    for query in queries:
        image = vectors.images[query]
        scores = (vectors.texts @ image).tolist()
        masked = np.array([(masks @ image).tolist() for _, masks in by_slot]).T.tolist()
        prompts = np.mean(np.array([(prompts @ image).tolist() for prompts, _ in by_slot]), 0).tolist()
        tuples = []
        for text, (score, prompt, masks) in enumerate(zip(scores, prompts, masked)):
            first = 0.8 * score + 0.2 * prompt
            tuples.append((text, score, first, 0.98 * first + 0.02 * sum([min(0, score - mask) for mask in masks])))
        found.append(three_sorts(tuples, pool, top_k))
    return time.process_time() - started, found


def three_sorts(tuples: list[tuple[int, float, float, float]], pool: int, top_k: int) -> list[int]:
    best = sorted(tuples, key=lambda one: one[1], reverse=True)[:pool]
    best = sorted(best, key=lambda one: one[2], reverse=True)
    return [one[0] for one in sorted(best, key=lambda one: one[3], reverse=True)[:top_k]]


def loop_back(own: dict[int, list[int]], other: dict[int, list[int]]) -> dict[int, list[int]]:
    """Both directions against each other, a query and a candidate at a time."""
    found = {}
    for query, items in own.items():
        if other[items[0]][0] == query:
            found[query] = items
            continue
        scored = []
        for place, item in enumerate(items):
            back = other[item]
            scored.append((item, (place + (back.index(query) if query in back else 10_000)) / 2))
        scored.sort(key=lambda one: one[1])
        found[query] = [item for item, _ in scored]
    return found


def ours(way: str, vectors: Vectors, pool: int, top_k: int) -> Lists:
    """All queries of a direction."""
    config = dataclasses.replace(RerankSettings().of(way).egr, pool=pool)
    queries, items = (vectors.texts, vectors.images) if way == "t2i" else (vectors.images, vectors.texts)
    evidence = entity_evidence(way, search_lists(queries, items, pool), vectors.images, vectors.slots)
    return guided_lists(way, evidence, config, top_k).lists


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds and what came of it."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def check_same(ours: Lists, asked: list[int], theirs: list[list[int]]) -> None:
    """The same lists; two neighbours may be swapped where their scores are the same to NEAR."""
    for query, expected in zip(asked, theirs, strict=True):
        scores = ours.scores[query]
        for place, (row, one) in enumerate(zip(ours.rows[query].tolist(), expected, strict=True)):
            if row != one:
                gap = np.abs(np.delete(scores, place) - scores[place]).min()
                assert gap < NEAR or place == len(scores) - 1, (query, place, row, one)


def measure_rounds(arguments: argparse.Namespace) -> None:
    vectors = random_vectors(arguments)
    rng = np.random.default_rng(1)
    sizes = {"t2i": len(vectors.texts), "i2t": len(vectors.images)}
    asked = {
        "t2i": sorted(rng.choice(sizes["t2i"], arguments.texts, replace=False).tolist()),
        "i2t": sorted(rng.choice(sizes["i2t"], arguments.images_asked, replace=False).tolist()),
    }
    loops = {"t2i": loop_texts, "i2t": loop_images}
    rows: dict[str, list[tuple[float, float]]] = {"t2i": [], "i2t": [], "TBR": [], "all of it": []}
    for _ in range(arguments.rounds):
        lists: dict[str, Lists] = {}
        for way in ("t2i", "i2t"):
            slow, expected = loops[way](vectors, asked[way], arguments.pool, arguments.k)
            fast, lists[way] = timed(lambda way=way: ours(way, vectors, arguments.pool, arguments.k))
            check_same(lists[way], asked[way], expected)
            rows[way].append((slow * sizes[way] / len(asked[way]), fast))
        plain = {way: dict(enumerate(one.rows.tolist())) for way, one in lists.items()}
        slow, expected = timed(lambda plain=plain: [loop_back(plain[own], plain[other]) for own, other in PAIRS])
        fast, found = timed(lambda lists=lists: [turned(lists, own, other, arguments.k) for own, other in PAIRS])
        assert [one.tolist() for one in found] == [list(one.values()) for one in expected]
        rows["TBR"].append((slow, fast))
        rows["all of it"].append(tuple(map(sum, zip(*(rows[name][-1] for name in ("t2i", "i2t", "TBR"))))))
    names = {
        "t2i": "search and EGR, text to image",
        "i2t": "search and EGR, image to text",
        "TBR": "TBR, both directions",
    }
    print("| work | queries | the loop's CPU seconds | ours | ratio (median of rounds) |")
    print("|---|---|---|---|---|")
    for name, measured in rows.items():
        slow, fast = (statistics.median(one) for one in zip(*measured))
        ratio = statistics.median(a / b for a, b in measured)
        queries = sizes.get(name, sum(sizes.values()))
        scaled = f", scaled from {len(asked[name])} queries" if name in asked else ""
        print(f"| {names.get(name, name)} | {queries:,} | {slow:,.1f}{scaled} | {fast:.2f} | {ratio:.0f} |")
    print(flush=True)


def turned(lists: dict[str, Lists], way: str, other: str, k: int) -> np.ndarray:
    """Rows (Q, K) of one direction's lists, in the order that the other direction gives them."""
    return lists[way].ordered(bidirectional_order(lists[way].rows, lists[other].rows, k)).rows


def peak_kb() -> int:
    """Highest resident memory of this process since it was started."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure_whole(arguments: argparse.Namespace) -> dict[str, float]:
    """Everything, from vectors to re-ranked lists."""
    base = peak_kb()
    vectors = random_vectors(arguments)
    held = peak_kb()
    settings = RerankSettings(slots=arguments.slots)
    found = {}
    total = 0.0
    names = {"t2i": [""] * len(vectors.images), "i2t": [""] * len(vectors.texts)}
    for name, work in (
        ("search", lambda: pools_of(vectors, pool_depths(settings, arguments.k))),
        ("entities", lambda: evidence_of(vectors, found["search"], settings)),
        ("order and TBR", lambda: rerank(found["search"], found["entities"], settings, names, arguments.k)),
    ):
        wall = time.perf_counter()
        seconds, found[name] = timed(work)
        total += seconds
        print(f"{name}: {seconds:.2f} CPU s, {time.perf_counter() - wall:.2f} s by the clock", file=sys.stderr)
    return {"seconds": total, "vectors_mb": (held - base) / 1024, "peak_mb": (peak_kb() - base) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--pool", type=int, default=128)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--texts", type=int, default=100, help="captions that ask")
    parser.add_argument("--images_asked", type=int, default=20, help="images that ask")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["rounds", "whole"])
    arguments = parser.parse_args()
    if arguments.only == "whole":
        print(json.dumps(measure_whole(arguments)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}, ", end="")
    print(f"{arguments.images:,} images x {arguments.images * CAPTIONS:,} captions, width {arguments.width}, ", end="")
    print(f"{arguments.slots} slots, pool {arguments.pool}, k {arguments.k}\n")
    if arguments.only != "whole":
        measure_rounds(arguments)
    if arguments.only != "rounds":
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        given = [f"--{name}={getattr(arguments, name)}" for name in ("images", "width", "slots", "pool", "k")]
        command = [sys.executable, __file__, "--only", "whole", *given]
        runs = [
            json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(arguments.rounds)
        ]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(
            f"whole: {seconds:.1f} CPU s (median of {len(runs)}), peak {max(run['peak_mb'] for run in runs):,.0f} MB, "
            f"of which vectors {runs[0]['vectors_mb']:,.0f} MB"
        )


if __name__ == "__main__":
    for name in ("OMP", "OPENBLAS", "MKL"):
        if f"{name}_NUM_THREADS" not in os.environ:
            os.environ |= {f"{one}_NUM_THREADS": "1" for one in ("OMP", "OPENBLAS", "MKL")}
            os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
