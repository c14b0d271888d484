"""Keys and queries for bench_search.py: made up, or embeddings of the example matcher."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vokenize.tokens import load_tokenizer
from vokenize.vokenizer import DualEncoderText
from xmatch import DualEncoder

EXAMPLES = Path(__file__).parents[1] / "examples"
KINDS = ("random", "clustered", "duplicates", "near", "real")
REAL_WIDTH = 256
QUERIES = 4096


class Bank(NamedTuple):
    """What one bank of keys is made of."""

    kind: str
    keys: int
    width: int


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
        cell = cls(kind, *map(int, numbers))
        if kind == "real" and cell.width != REAL_WIDTH:
            raise SystemExit(f"the example matcher's embeddings have width {REAL_WIDTH}, got {text!r}")
        return cell

    @property
    def bank(self) -> Bank:
        return Bank(self.kind, self.keys, self.width)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) at unit length, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_rows(bank: Bank, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Keys (N, D), and queries (4096, D) of the same kind.

    Random rows; 500 clusters, noise 0.35 of the centre; these with a tenth of exact or near copies; real embeddings.
    """
    if bank.kind == "real":
        return token_embeddings(bank.keys)
    rng = np.random.default_rng(seed)
    if bank.kind == "random":
        keys = rng.standard_normal((bank.keys, bank.width), dtype=np.float32)
        return unit(keys), unit(rng.standard_normal((QUERIES, bank.width)))
    centres = unit(rng.standard_normal((500, bank.width)))
    spread = np.float32(0.35 / np.sqrt(bank.width))

    def around(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, bank.width), dtype=np.float32)
        return unit(centres[rng.integers(0, 500, count)] + spread * noise)

    keys, queries = around(bank.keys), around(QUERIES)
    if bank.kind != "clustered":
        copies = rng.choice(bank.keys, bank.keys // 10, replace=False)
        keys[copies] = keys[rng.integers(0, bank.keys, len(copies))]
        if bank.kind == "near":
            keys[copies] = unit(keys[copies] + 1e-6 * rng.standard_normal((len(copies), bank.width)))
    return keys, queries


def token_embeddings(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and (4096, D) of tokens in context by the example matcher: of example sentences, in pairs."""
    model = DualEncoder.from_pretrained(str(EXAMPLES / "matcher")).eval()
    lines = (EXAMPLES / "text" / "sentences.txt").read_text().splitlines()
    encoder = DualEncoderText(model, tokens_per_batch=4096)
    tokenizer, found, total = load_tokenizer(str(EXAMPLES / "matcher")), [], 0
    for first, second in itertools.product(lines, lines[::-1]):
        ids = np.array(tokenizer(f"{first} {second}", add_special_tokens=False)["input_ids"])
        found += [group.tokens for group in encoder.encode(ids, np.array([len(ids)]))]
        total += len(ids)
        if total >= count + QUERIES:
            break
    rows = unit(np.concatenate(found))
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    if len(rows) < count + QUERIES:
        raise SystemExit(f"the example sentences give {len(rows)} token embeddings; {count + QUERIES} are needed")
    return rows[:count], rows[count : count + QUERIES]
