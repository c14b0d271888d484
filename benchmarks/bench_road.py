"""Where the time of vokenization goes: encoder, search, reading and publishing, and what Ray adds.

    python benchmarks/bench_road.py --lines 100000 --model examples/matcher --keys demo-output/keys
    python benchmarks/bench_road.py --lines 80 --bert_base 64 --keys_random 50000 --level token --top_k 1 --plain_only

The second line asks what share search has beside a tower of the published size: BERT-base with random weights, as fast
as the real one, and that many random keys of the given width.

Runs the step over the same token shards twice in turn: in a plain loop in this process, and through Ray; shares are of
the plain loop, Ray's overhead is the ratio of the two. Lines beyond the example text are made by joining its lines in
pairs, so that nearly all are different.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from raydeploy.connect import RayConfig, connect
from raydeploy.ledger import Ledger
from raydeploy.streams import ShardActor, run_shards
from vokenize.tokens import load_tokenizer, plan_token_shards, read_token_shard, tokenize
from vokenize.vokenizer import VokenizeConfig, VokenizeShard
from xmatch import DualEncoder
from xmatch.data import files
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

LINES_PER_SHARD = 4096
EXAMPLES = Path(__file__).parents[1] / "examples"


def write_tokens(folder: str, count: int, model: str) -> int:
    """Token shards of `count` lines; the number of tokens."""
    lines = (EXAMPLES / "text" / "sentences.txt").read_text().splitlines()
    pairs = (f"{a} {b}" for a, b in itertools.product(lines, lines))
    texts = list(itertools.islice(itertools.chain(lines, pairs), count))
    tokenizer, tokens = load_tokenizer(model), 0
    for number, start in enumerate(range(0, len(texts), LINES_PER_SHARD)):
        part = texts[start : start + LINES_PER_SHARD]
        table = tokenize(tokenizer, list(range(start, start + len(part))), part)
        tokens += sum(map(len, filter(None, table.column("token_ids").to_pylist())))
        files.write_parquet(files.join(folder, f"part-{number:05d}.parquet"), table)
    return tokens


def save_bert_base(folder: str, width: int) -> str:
    """A dual encoder with the published text tower's shape, random weights, and the example matcher's tokenizer."""
    text = TextTowerConfig(
        name=None, hidden_size=768, num_layers=12, num_heads=12, layers=(4, 3, 2, 1), trainable=True, max_len=128
    )
    image = ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=32, resize=36)
    config = DualEncoderConfig(dim=width, pooling="mean", image=image, text=text)
    torch.manual_seed(0)
    DualEncoder.from_config(config, load_tokenizer(str(EXAMPLES / "matcher"))).save_pretrained(folder)
    return folder


def save_random_keys(path: str, count: int, width: int) -> str:
    """A bank of random unit vectors."""
    rows = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_vectors(path, make_vectors([str(i) for i in range(count)], rows))
    return path


def plain(tokens: str, output: str, step: VokenizeShard) -> tuple[float, Counter[str]]:
    """Seconds of a plain loop, and of each stage."""
    started, stages = time.perf_counter(), Counter()
    actor = ShardActor(step, output, "parquet")
    for shard in plan_token_shards(tokens):
        began = time.perf_counter()
        rows = read_token_shard(shard)
        stages["read"] += time.perf_counter() - began
        stages.update(actor.run_shard(shard.id, rows).seconds)
    return time.perf_counter() - started, stages


def through_ray(tokens: str, output: str, step: VokenizeShard) -> float:
    """Seconds through Ray, connected already."""
    started = time.perf_counter()
    ledger = Ledger(output, {})
    for _ in run_shards(plan_token_shards(tokens), read_token_shard, step, ledger, suffix="parquet", ray=RayConfig()):
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=407)
    parser.add_argument("--model", default=str(EXAMPLES / "matcher"))
    parser.add_argument("--keys", default="")
    parser.add_argument("--bert_base", type=int, default=0, help="width of the shared space of a BERT-base encoder")
    parser.add_argument("--keys_random", type=int, default=0, help="random keys instead of --keys")
    parser.add_argument("--level", default="both")
    parser.add_argument("--top_k", type=int, default=3)
    parser.add_argument("--plain_only", action="store_true", help="do not run it through Ray")
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp()
    if arguments.bert_base:
        arguments.model = save_bert_base(f"{folder}/model", arguments.bert_base)
    if arguments.keys_random:
        arguments.keys = save_random_keys(f"{folder}/keys.arrow", arguments.keys_random, arguments.bert_base or 256)
    tokens = str(Path(folder) / "tokens")
    count = write_tokens(tokens, arguments.lines, arguments.model)
    config = VokenizeConfig(level=arguments.level, top_k=arguments.top_k)
    print(f"{arguments.lines:,} lines, {count:,} tokens")
    with nullcontext() if arguments.plain_only else connect(RayConfig()):
        for run in range(arguments.runs):
            alone, stages = plain(
                tokens, f"{folder}/plain{run}", VokenizeShard(arguments.model, arguments.keys, config)
            )
            stages["the rest (rows to Arrow, dedup)"] = alone - sum(stages.values())
            print(f"plain loop {alone:.1f} s, {count / alone:,.0f} tokens/s")
            if not arguments.plain_only:
                step = VokenizeShard(arguments.model, arguments.keys, config)
                ray = through_ray(tokens, f"{folder}/ray{run}", step)
                print(f"through Ray {ray:.1f} s, ratio {ray / alone:.2f}")
            for name, seconds in stages.most_common():
                print(f"  {name:34} {seconds / alone:6.1%}, without loading {seconds / (alone - stages['load']):6.1%}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
