"""The golden cases' stand-in for a language model: embeddings from a table and the mean of the unmasked positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from small_models import golden

KEYS = golden("vokenizer")


class StubEncoder:
    """x = normalise(E[t] + 0.5 mean(E, specials included) + [.001, .002, .003, .004]); a sentence is its [CLS] row."""

    def __init__(self) -> None:
        self.table = np.array(KEYS["token_table_E"], np.float64)

    def encode(self, pieces: Sequence[Sequence[int]], level: str) -> tuple[list[np.ndarray], np.ndarray]:
        rows = [self.rows(piece) for piece in pieces]
        return [row[1:-1] for row in rows], np.stack([row[0] for row in rows])

    def rows(self, piece: Sequence[int]) -> np.ndarray:
        table = self.table[[KEYS["cls"], *piece, KEYS["sep"]]]
        x = table + 0.5 * table.mean(0) + np.array([0.001, 0.002, 0.003, 0.004])
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class WithSpecials(StubEncoder):
    """Gives the special positions too, which the golden results have."""

    def encode(self, pieces: Sequence[Sequence[int]], level: str) -> tuple[list[np.ndarray], np.ndarray]:
        rows = [self.rows(piece[1:-1]) for piece in pieces]
        return rows, np.stack([row[0] for row in rows])


def golden_bank() -> tuple[list[str], list[str], np.ndarray]:
    """Universal ids, paths and keys (N, 4) in the original's order: sets sorted by name."""
    ids, paths, rows = [], [], []
    for name in sorted(KEYS["keys"]):
        ids += [f"{name}/{image}" for image in KEYS["ids"][name]]
        paths += KEYS["paths"][name]
        rows += KEYS["keys"][name]
    return ids, paths, np.array(rows, np.float32)
