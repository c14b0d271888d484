"""From a key bank on disk to a searcher over it, or over some of its rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from xmatch.data import files
from xmatch.data.key_banks import KeyBank, open_key_bank
from xmatch.search.approximate import ApproximateSearcher, build_approximate, load_approximate
from xmatch.search.approximate_config import KINDS, ApproximateConfig
from xmatch.search.grouped import require_no_views
from xmatch.search.packed import packed_files
from xmatch.search.planner import SAMPLE_KEYS, BankShape
from xmatch.search.searcher import Searcher, build_searcher

VIEWS_ARE_NO_VOKENS = (
    "a voken is the number of a row, so one image would be several vokens. Use the bank of a model with one vector an "
    "image; banks of views are for xmatch.search.grouped and xmatch.search.factored."
)


def bank_shape(path: str) -> BankShape:
    """Size of a key bank whose rows are things of their own.

    Raises:
        InputError: there is none, it is broken, or several rows of it are views of one image.
    """
    bank = open_key_bank(path)
    require_no_views(bank, VIEWS_ARE_NO_VOKENS)
    return BankShape(bank.shape[0], bank.shape[1], bank.dtype.itemsize)


@dataclass(frozen=True)
class OpenBank:
    """Opens rows of a key bank for search; plain values, so it can be sent to where the rows shall lie.

    What can be derived once, packed keys or an approximate index, is kept in the bank's cache folder.

    Attributes:
        path: of the bank.
        backend: as for `build_searcher`, or a kind of approximate search.
        device: as for `build_searcher`; backends of the processor stay there.
        approximate: how an approximate index is built and asked.
    """

    path: str
    backend: str = "auto"
    device: str = "cpu"
    approximate: ApproximateConfig = field(default_factory=ApproximateConfig)

    def __call__(self, start: int, stop: int, threads: int) -> Searcher | ApproximateSearcher:
        """A searcher over the rows start … stop - 1, whose ids count from the start of the bank."""
        bank = open_key_bank(self.path)
        require_no_views(bank, VIEWS_ARE_NO_VOKENS)
        if self.is_approximate:
            return self._approximate(bank, start, stop)
        packed = packed_files(bank)
        if packed is not None and (start, stop) != (0, bank.shape[0]):
            packed = packed.variant(f"rows{start}-{stop}")
        rows = bank.rows[start:stop]
        return build_searcher(rows, self.backend, threads, first_id=start, device=self._device(), packed=packed)

    def exact(self, threads: int) -> Searcher:
        """Exact search over the whole bank, whatever the backend is."""
        found = OpenBank(self.path)(0, open_key_bank(self.path).shape[0], threads)
        assert isinstance(found, Searcher)
        return found

    def sample(self, threads: int) -> Searcher:
        """A searcher over up to 65,536 evenly spaced rows, whose ids count what is kept."""
        rows = open_key_bank(self.path).rows
        backend = "auto" if self.is_approximate else self.backend
        return build_searcher(rows[:: -(-len(rows) // SAMPLE_KEYS) or 1], backend, threads, device=self._device())

    @property
    def is_approximate(self) -> bool:
        """Whether some of the best keys may be missed."""
        return self.backend in KINDS

    def _device(self) -> str:
        return "cpu" if self.backend == "native" or self.is_approximate else self.device

    def _approximate(self, bank: KeyBank, start: int, stop: int) -> ApproximateSearcher:
        rows, kind = bank.rows[start:stop], next(kind for kind in KINDS if kind == self.backend)
        if not bank.cache:
            return build_approximate(rows, kind, self.approximate, first_id=start)
        settings = hashlib.sha256(repr(self.approximate).encode()).hexdigest()[:12]
        path = files.join(bank.cache, f"{kind}-{bank.hash[:16]}-rows{start}-{stop}-{settings}.index")
        if not files.exists(f"{path}.json"):
            build_approximate(rows, kind, self.approximate, first_id=start).save(path)
        return load_approximate(path, rows, first_id=start)
