"""The golden cases' stand-in for a language model: embeddings from a table and the mean of the unmasked positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from small_models import golden

from vokenize.text_encoder import Encoded

KEYS = golden("vokenizer")


class StubEncoder:
    """x = normalise(E[t] + 0.5 mean(E, specials included) + [.001, .002, .003, .004]); a sentence is its [CLS] row."""

    def __init__(self) -> None:
        self.table = np.array(KEYS["token_table_E"], np.float64)

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> Iterator[Encoded]:
        if len(lengths):
            rows = [self.rows(piece) for piece in np.split(tokens, np.cumsum(lengths)[:-1])]
            own = np.concatenate([row[1:-1] for row in rows])
            yield Encoded(np.arange(len(lengths)), own, np.stack([row[0] for row in rows]))

    def rows(self, piece: Sequence[int]) -> np.ndarray:
        table = self.table[[KEYS["cls"], *piece, KEYS["sep"]]]
        x = table + 0.5 * table.mean(0) + np.array([0.001, 0.002, 0.003, 0.004])
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class WithSpecials(StubEncoder):
    """Gives the special positions too, which the golden results have."""

    def encode(self, tokens: np.ndarray, lengths: np.ndarray) -> Iterator[Encoded]:
        rows = [self.rows(piece[1:-1]) for piece in np.split(tokens, np.cumsum(lengths)[:-1])]
        yield Encoded(np.arange(len(lengths)), np.concatenate(rows), np.stack([row[0] for row in rows]))


def line_rows(lines: Sequence[Sequence[int] | None]) -> pa.Table:
    """Token ids of lines, counted from 0, as the columns that are read of a token shard."""
    ids = pa.array([None if line is None else list(line) for line in lines], pa.list_(pa.int32()))
    return pa.table({"line_id": pa.array(range(len(lines)), pa.int64()), "token_ids": ids})


def golden_bank() -> tuple[list[str], list[str], np.ndarray]:
    """Universal ids, paths and keys (N, 4) in the original's order: sets sorted by name."""
    ids, paths, rows = [], [], []
    for name in sorted(KEYS["keys"]):
        ids += [f"{name}/{image}" for image in KEYS["ids"][name]]
        paths += KEYS["paths"][name]
        rows += KEYS["keys"][name]
    return ids, paths, np.array(rows, np.float32)
