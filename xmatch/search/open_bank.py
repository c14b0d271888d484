"""From a key bank on disk to a searcher over it, or over some of its rows."""

from __future__ import annotations

from dataclasses import dataclass

from xmatch.data.vectors import matrix, read_vectors
from xmatch.search.planner import BankShape
from xmatch.search.searcher import Searcher, build_searcher


def bank_shape(path: str) -> BankShape:
    """Size of a key bank.

    Raises:
        InputError: there is none, or it is broken.
    """
    rows = matrix(read_vectors(path))
    return BankShape(rows.shape[0], rows.shape[1], rows.itemsize)


@dataclass(frozen=True)
class OpenBank:
    """Opens rows of a key bank for search; plain values, so it can be sent to where the rows shall lie.

    Attributes:
        path: of the bank.
        backend: as for `build_searcher`.
    """

    path: str
    backend: str = "auto"

    def __call__(self, start: int, stop: int, threads: int) -> Searcher:
        """A searcher over the rows start … stop - 1, whose ids count from the start of the bank."""
        rows = matrix(read_vectors(self.path))[start:stop]
        return build_searcher(rows, self.backend, threads, first_id=start)

    def every(self, step: int, threads: int) -> Searcher:
        """A searcher over every `step`-th row, whose ids count what is kept."""
        return build_searcher(matrix(read_vectors(self.path))[::step], self.backend, threads)
