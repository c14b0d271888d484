"""The parts of vokenization one by one, on one core: the figures that docs/performance.md reckons with.

    python benchmarks/bench_parts.py [--lines 16384] [--bert_lines 160] [--rounds 3]

CPU seconds of this process, the least of some rounds. The tower is of BERT-base's shape with random weights, as fast as
the real one; keys are 50,000 random ones of width 64; lines are pairs of the example sentences, nearly all different.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_pipeline import lines_of
from bench_road import save_bert_base, save_random_keys

from vokenize.list_columns import values_of
from vokenize.text_encoder import DualEncoderText, Encoded, Precision
from vokenize.tokens import TokenizeLines
from vokenize.vokenizer import VokenizeConfig, vokenize_rows
from xmatch import DualEncoder
from xmatch.data import files
from xmatch.data.decode import decode_rgb
from xmatch.data.key_banks import open_key_bank
from xmatch.search import build_searcher
from xmatch.search.exact import SearchResult

EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH, KEYS = 64, 50_000


class NoEncoder:
    """Gives the same embedding for everything, at no cost."""

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> Iterator[Encoded]:
        zeros = np.zeros((1, WIDTH), np.float32)
        rows = (np.broadcast_to(zeros, (n, WIDTH)) for n in (len(tokens), len(lengths)))
        yield Encoded(np.arange(len(lengths)), *rows)


class NoSearch:
    """Finds the first key for everything, at no cost."""

    key_count = KEYS

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        return SearchResult(np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64))


def least(rounds: int, work: Callable[[], Any]) -> float:
    """CPU seconds."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=16_384)
    parser.add_argument("--bert_lines", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        step = TokenizeLines(str(EXAMPLES / "matcher"))
        lines = list(lines_of(arguments.lines))
        raw = pa.table({"line_id": range(len(lines)), "text": lines})
        rows = step("warm", raw).table
        count = len(values_of(rows["token_ids"]))
        print(f"{len(lines):,} lines, {count:,} tokens")
        seconds = least(rounds, lambda: step("x", raw))
        print(f"tokenize: {len(lines) / seconds:,.0f} lines/s, {count / seconds / 1e6:.2f} M tokens/s")
        config = VokenizeConfig()
        seconds = least(rounds, lambda: vokenize_rows(rows, NoEncoder(), NoSearch(), config))
        print(f"windows, duplicates, Arrow: {count / seconds / 1e6:.1f} M tokens/s")
        vokens = vokenize_rows(rows, NoEncoder(), NoSearch(), config)
        draws = np.random.default_rng(0)
        vokens = vokens.set_column(
            2,
            "vokens",
            pa.ListArray.from_arrays(
                vokens["vokens"].combine_chunks().offsets, pa.array(draws.integers(0, KEYS, count).astype(np.int32))
            ),
        ).set_column(
            3,
            "scores",
            pa.ListArray.from_arrays(
                vokens["scores"].combine_chunks().offsets, pa.array(draws.random(count, dtype=np.float32))
            ),
        )
        path = f"{folder}/vokens.parquet"
        seconds = least(rounds, lambda: (files.write_parquet(path, vokens), files.size_and_sha256(path)))
        size = Path(path).stat().st_size
        print(f"publish: {count / seconds / 1e6:.1f} M tokens/s, {size / count:.2f} bytes a token (random vokens)")
        files.write_parquet(path, rows)
        seconds = least(rounds, lambda: files.read_parquet(path))
        size = Path(path).stat().st_size
        print(f"read tokens: {count / seconds / 1e6:.1f} M tokens/s, {size / count:.2f} bytes a token")
        save_random_keys(f"{folder}/keys.arrow", KEYS, WIDTH)
        searcher = build_searcher(open_key_bank(f"{folder}/keys.arrow").rows)
        queries = draws.standard_normal((1 << 16, WIDTH), dtype=np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        searcher.search(queries[:4096], 1)
        seconds = least(rounds, lambda: searcher.search(queries, 1))
        print(f"search {KEYS:,} x {WIDTH} ({searcher.backend}): {len(queries) / seconds:,.0f} queries/s")
        few = rows.slice(0, arguments.bert_lines)
        ids = values_of(few["token_ids"]).astype(np.int64)
        lengths = np.array([len(line) for line in few["token_ids"].to_pylist() if line])
        save_bert_base(f"{folder}/bert", WIDTH)
        for precision in ("float32", "bfloat16"):
            model = DualEncoder.from_pretrained(f"{folder}/bert").eval()
            print_encoder(model, precision, ids, lengths, rounds)
        transform = DualEncoder.from_pretrained(str(EXAMPLES / "matcher")).image_tower.transform(train=False)
        photos = sorted(str(path) for path in (EXAMPLES / "photos").iterdir())
        seconds = least(rounds, lambda: [transform(decode_rgb(path)) for path in photos])
        print(f"decode and transform photographs of 320 pixels: {len(photos) / seconds:,.0f} images/s")


def print_encoder(model: DualEncoder, precision: Precision, ids: np.ndarray, lengths: np.ndarray, rounds: int) -> None:
    """Rate of the tower over `ids`, of shape (T,), and the multiplications and additions of a token."""
    encoder = DualEncoderText(model, 4096, precision)
    weights = sum(p.numel() for name, p in model.text_tower.named_parameters() if "embeddings" not in name)
    seconds = least(rounds, lambda: list(encoder.encode(ids, lengths)))
    flop = 2 * weights * len(ids)
    print(
        f"BERT-base tower, {precision}: {len(ids) / seconds:,.0f} tokens/s, {2 * weights / 1e6:.0f} MFLOP a token, "
        f"{flop / seconds / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
