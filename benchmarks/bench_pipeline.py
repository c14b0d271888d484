"""What Ray costs: each streamed job beside a plain loop over the same model and search, in turn.

    python benchmarks/bench_pipeline.py [--rounds 3] [--only vokenize embed tokenize] [--output RESULT.json]

A plain loop is what one would write without this project: read a file, run tokenizer, tower and search on it, write a
file; no resume, no checksums. Compared is the rate between the first and the last finished shard, since starting takes
the same few seconds however long a run is. `1 worker` is the job's stream on one actor against one such loop;
`2 workers` two actors against two loops in two processes at a time. Ratios above 1 are in favour of the stream: it
reads and publishes beside the work where the loop takes turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_road import save_random_keys
from PIL import Image
from transformers import AutoTokenizer

from raydeploy.connect import RayConfig, connect
from raydeploy.ledger import Ledger
from raydeploy.streams import run_shards
from vokenize.tokens import TokenizeLines, plan_token_shards, read_token_shard
from vokenize.vokenizer import VokenizeConfig, VokenizeShard
from xmatch import DualEncoder
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards
from xmatch.data.key_banks import open_key_bank
from xmatch.data.steps import Reader, Shard, Step
from xmatch.data.text_lines import LineReader, LineSource, plan_line_shards
from xmatch.embedding import EmbedImages
from xmatch.search import build_searcher

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = str(EXAMPLES / "matcher")
LINES, LINES_PER_SHARD = 8_192, 1024
TEXT_LINES, TEXT_LINES_PER_SHARD = 400_000, 16_384
IMAGES, IMAGES_PER_SHARD = 2_064, 86
KEYS, BATCH, TOKENS_PER_BATCH = 50_000, 32, 4096


class Work(NamedTuple):
    """One job, streamed and plain.

    Attributes:
        unit: what is counted.
        shards: of the stream; the plain loop takes the same pieces.
        reader: of the stream.
        step: of the stream, made anew for each run.
        suffix: of its files.
        plain: a loop over some pieces that yields the units of each as it is done.
    """

    unit: str
    shards: list[Shard]
    reader: Reader
    step: Callable[[], Step]
    suffix: str
    plain: Callable[[str, str, int, int], Iterator[int]]


def lines_of(count: int) -> Iterator[str]:
    """Different lines, made by joining the example sentences in pairs."""
    lines = (EXAMPLES / "text" / "sentences.txt").read_text().splitlines()
    pairs = (f"{a} {b}" for a, b in itertools.product(lines, lines))
    triples = (f"{a} {b} {a}" for a, b in itertools.product(lines, lines))
    return itertools.islice(itertools.cycle(itertools.chain(pairs, triples)), count)


def plain_tokens(folder: str, output: str, part: int, parts: int) -> Iterator[int]:
    """Lines to files of ids and offsets, as the tokenizer gives them."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with open(f"{folder}/text.txt") as text:
        for number in itertools.count():
            lines = [line.rstrip("\n") for line in itertools.islice(text, TEXT_LINES_PER_SHARD)]
            if not lines:
                return
            if number % parts == part:
                found = tokenizer(lines, add_special_tokens=False, return_offsets_mapping=True)
                starts = [[start for start, _ in row] for row in found["offset_mapping"]]
                ends = [[end for _, end in row] for row in found["offset_mapping"]]
                table = pa.table({"text": lines, "ids": found["input_ids"], "starts": starts, "ends": ends})
                pq.write_table(table, f"{output}/{part}-{number}.parquet", compression="zstd")
                yield len(lines)


def plain_vokens(folder: str, output: str, part: int, parts: int) -> Iterator[int]:
    """Token files to voken files: batches of lines of like length through the model, then the search."""
    model = DualEncoder.from_pretrained(MODEL)
    searcher = build_searcher(open_key_bank(f"{folder}/keys.arrow").rows, threads=1)
    cls, sep = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    for path in sorted(Path(folder, "tokens").rglob("*.parquet"))[part::parts]:
        lines = pq.read_table(path)["token_ids"].to_pylist()
        order = sorted(range(len(lines)), key=lambda line: len(lines[line] or ()))
        order = [line for line in order if lines[line]]
        found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(lines)
        while order:
            count = max(1, TOKENS_PER_BATCH // (len(lines[order[min(len(order), 64) - 1]]) + 2))
            batch, order = order[:count], order[count:]
            width = max(len(lines[line]) for line in batch) + 2
            ids = torch.tensor([[cls, *lines[i], sep] + [0] * (width - 2 - len(lines[i])) for i in batch])
            mask = torch.tensor([[1] * (len(lines[i]) + 2) + [0] * (width - 2 - len(lines[i])) for i in batch])
            with torch.inference_mode():
                tokens = model.embed_tokens(ids, mask).numpy()
            rows = np.concatenate([tokens[row, 1 : 1 + len(lines[i])] for row, i in enumerate(batch)])
            vokens = searcher.search(rows, 1).ids[:, 0]
            for line, part_of in zip(batch, np.split(vokens, np.cumsum([len(lines[i]) for i in batch])[:-1])):
                found[line] = part_of
        pq.write_table(pa.table({"vokens": found}), f"{output}/{path.name}", compression="zstd")
        yield sum(map(len, found))


def plain_images(folder: str, output: str, part: int, parts: int) -> Iterator[int]:
    """Bare decode and forward: photographs in batches, embeddings saved a file's worth at a time."""
    model = DualEncoder.from_pretrained(MODEL)
    transform = model.image_tower.transform(train=False)
    paths = sorted(Path(folder, "images").iterdir())
    for number, first in enumerate(range(0, len(paths), IMAGES_PER_SHARD)):
        if number % parts == part:
            rows = []
            some = paths[first : first + IMAGES_PER_SHARD]
            for start in range(0, len(some), BATCH):
                pixels = [transform(Image.open(path).convert("RGB")) for path in some[start : start + BATCH]]
                with torch.inference_mode():
                    rows.append(model.embed_images(torch.stack(pixels)).numpy())
            np.save(f"{output}/{number}.npy", np.concatenate(rows))
            yield len(some)


PLAIN = {"tokenize": plain_tokens, "vokenize": plain_vokens, "embed": plain_images}


def prepare(folder: str, name: str) -> Work:
    """Input files of a job, and both ways to do it."""
    if name == "embed":
        images = Path(folder, "images")
        images.mkdir()
        photos = sorted((EXAMPLES / "photos").iterdir())
        for number in range(IMAGES):
            os.link(photos[number % len(photos)], images / f"{number:06d}.jpg")
        source = ImageSource(root=str(images))
        step = lambda: EmbedImages(MODEL, batch_size=BATCH)  # noqa: E731
        return Work(
            "images", plan_image_shards(source, IMAGES_PER_SHARD), ImageReader(source), step, "arrow", plain_images
        )
    count, size = (TEXT_LINES, TEXT_LINES_PER_SHARD) if name == "tokenize" else (LINES, LINES_PER_SHARD)
    Path(folder, "text.txt").write_text("".join(f"{line}\n" for line in lines_of(count)))
    source_of_lines = LineSource(path=f"{folder}/text.txt")
    shards, reader = plan_line_shards(source_of_lines, size), LineReader(source_of_lines)
    if name == "tokenize":
        return Work("lines", shards, reader, lambda: TokenizeLines(MODEL), "parquet", plain_tokens)
    tokens, tokenizer = f"{folder}/tokens", TokenizeLines(MODEL)
    Path(tokens).mkdir()
    for shard in shards:
        pq.write_table(tokenizer(shard.id, reader(shard)).table, f"{tokens}/{shard.id}.parquet")
    save_random_keys(f"{folder}/keys.arrow", KEYS, DualEncoder.from_pretrained(MODEL).config.dim)
    config = VokenizeConfig(tokens_per_batch=TOKENS_PER_BATCH)
    step_of = lambda: VokenizeShard(MODEL, f"{folder}/keys.arrow", config)  # noqa: E731
    return Work("tokens", plan_token_shards(tokens), read_token_shard, step_of, "parquet", plain_vokens)


class Finished(NamedTuple):
    """When a piece was done, and its units."""

    at: float
    units: int


def rate(finished: list[Finished], skipped: int) -> float:
    """Units a second after the first `skipped` pieces, one for each worker."""
    ordered = sorted(finished)
    return sum(piece.units for piece in ordered[skipped:]) / (ordered[-1].at - ordered[skipped - 1].at)


def streamed(work: Work, actors: int) -> float:
    """Rate through Ray."""
    with tempfile.TemporaryDirectory() as output:
        ledger, done = Ledger(output, {}), []
        reports = run_shards(
            work.shards, work.reader, work.step(), ledger, suffix=work.suffix, ray=RayConfig(actors=actors)
        )
        for report in reports:
            done.append(Finished(time.time(), report.counts[work.unit]))
        return rate(done, actors)


def looped(name: str, folder: str, processes: int) -> float:
    """Rate of plain loops in processes of their own, which share the pieces."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, __file__, "--plain", name, "--folder", folder, "--output", output]
        started = [
            subprocess.Popen([*command, "--part", f"{part}/{processes}"], stdout=subprocess.PIPE, text=True)
            for part in range(processes)
        ]
        lines = [line for process in started for line in process.communicate()[0].splitlines()]
        if any(process.returncode for process in started):
            raise SystemExit(f"a plain loop of {name} failed")
        return rate([Finished(float(at), int(units)) for at, units in map(str.split, lines)], processes)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Both ways in turn, on one and two workers."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(folder, name)
        for workers in (1, 2):
            pairs = []
            for _ in range(rounds):
                pairs.append((streamed(work, workers), looped(name, folder, workers)))
                ratio = pairs[-1][0] / pairs[-1][1]
                print(f"{name}, {workers} worker(s): stream {pairs[-1][0]:,.0f}, loop {pairs[-1][1]:,.0f} {work.unit}/s"
                      f", ratio {ratio:.2f}", flush=True)  # fmt: skip
            ratios = [stream / loop for stream, loop in pairs]
            found[f"{workers} workers"] = {"pairs": pairs, "median ratio": statistics.median(ratios)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(PLAIN), choices=list(PLAIN))
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--plain", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.plain:
        part, parts = map(int, arguments.part.split("/"))
        for units in PLAIN[arguments.plain](arguments.folder, arguments.output, part, parts):
            print(time.time(), units, flush=True)
        return
    with connect(RayConfig(actors=2, object_store_mb=512)):
        found = {name: measure(name, arguments.rounds) for name in arguments.only}
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
