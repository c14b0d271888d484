"""What every exact searcher does, wherever its keys lie."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from xmatch.search.exact import SearchResult


class TopK(Protocol):
    """Top-k by exact inner product; equal scores by lowest id."""

    @property
    def key_count(self) -> int:
        """Keys that are searched."""
        ...

    def search(self, queries: npt.NDArray[np.floating], k: int) -> SearchResult:
        """Scores (Q, k) float32 and ids (Q, k) int64 of the k best keys of each query (Q, D), best first."""
        ...
