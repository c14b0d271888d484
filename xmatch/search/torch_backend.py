"""Candidates by blocked matrix products in torch; runs anywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

KEY_BLOCK = 1 << 16
"""Keys scored at a time: with 1,024 queries a block of scores takes 256 MiB."""


class TorchScan:
    """Float32 scores by torch, the best of each block of keys merged.

    Args:
        keys: (N, D) float32.
        threads: torch's threads while it scans.
    """

    def __init__(self, keys: npt.NDArray[np.float32], threads: int) -> None:
        self.threads = threads
        self._keys = torch.from_numpy(keys if keys.flags.writeable else keys.copy())

    def candidates(
        self, queries: npt.NDArray[np.float32], depth: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `depth` best keys of each query: scores (Q, depth) best first, ids (Q, depth)."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            asked = torch.from_numpy(queries if queries.flags.writeable else queries.copy())
            scores = torch.empty((len(asked), 0))
            ids = torch.empty((len(asked), 0), dtype=torch.int64)
            for start in range(0, len(self._keys), KEY_BLOCK):
                block = asked @ self._keys[start : start + KEY_BLOCK].T
                best, place = block.topk(min(depth, block.shape[1]), dim=1)
                scores, ids = torch.cat([scores, best], 1), torch.cat([ids, place + start], 1)
                kept = scores.topk(min(depth, scores.shape[1]), dim=1)
                scores, ids = kept.values, ids.gather(1, kept.indices)
        finally:
            torch.set_num_threads(before)
        return scores.numpy(), ids.numpy()
