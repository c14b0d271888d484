"""Approximate search, for banks that are too large to be scanned: chosen by name, never by `auto`.

An index proposes candidates; they are scored exactly from the stored rows, and ordered as exact search orders them. So
scores are right, and what may be missing is some of the best keys: `recall_at_k` says how many.

Shapes: Q queries, N keys, D width, P pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.search.approximate_config import KINDS, ApproximateConfig, Kind, settle
from xmatch.search.exact import SearchResult, begin_search, best_of_each, check_rows
from xmatch.search.faiss_approximate import CandidateIndex, build_index, read_index
from xmatch.search.scores import Float32, Int64, Rows, decode, pair_scores

QUERY_BLOCK = 1024
FORMAT = 1


class ApproximateSearcher:
    """Approximate top-k by inner product; scores and order are exact, keys may be missing.

    Attributes:
        keys: (N, D) as they were given.
        kind: of the index.
        config: settled.
    """

    def __init__(self, keys: Rows, kind: Kind, config: ApproximateConfig, index: CandidateIndex, first_id: int) -> None:
        self.keys, self.kind, self.config, self.first_id = keys, kind, config, first_id
        self._index = index

    @property
    def key_count(self) -> int:
        """Keys that are searched."""
        return len(self.keys)

    def search(self, queries: npt.NDArray[np.floating], k: int) -> SearchResult:
        """Good keys of every query, by exact score, equal scores by the lowest id.

        Args:
            queries: (Q, D) float32, float16 or bfloat16, finite.
            k: results per query, at least 1.

        Returns:
            Scores (Q, k) and ids (Q, k); where the index found fewer, the rest is -inf with id -1.

        Raises:
            ValueError: k is below 1, or the queries are no matrix of this width.
            InputError: a query is not finite (names the row).
        """
        checked, result = begin_search(queries, k, self.keys.shape[1])
        asked = decode(checked)
        depth = min(len(self.keys), k * (self.config.candidates_per_result or 1))
        for start in range(0, len(asked), QUERY_BLOCK):
            block = asked[start : start + QUERY_BLOCK]
            rows = np.sort(self._index.candidates(block, depth, self.config.threads), axis=1)
            part = self._score(block, rows, k)
            result.scores[start : start + len(block)], result.ids[start : start + len(block)] = part
        return result

    def save(self, path: str) -> None:
        """Write the index to `path`, and what it was built from to `path`.json; the keys stay where they are.

        Raises:
            InputError: it cannot be written.
        """
        facts = {
            "format": FORMAT,
            "kind": self.kind,
            "config": asdict(self.config),
            "keys": list(self.keys.shape),
            "sample": _fingerprint(self.keys),
        }
        part = files.temporary_name(path)
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self._index.write(part)
            os.replace(part, path)
            files.write_json(f"{path}.json", facts)
        except (OSError, RuntimeError) as error:
            raise InputError(f"the approximate index {path!r} cannot be written: {error}") from error

    def _score(self, queries: Float32, rows: Int64, k: int) -> SearchResult:
        is_found = rows >= 0
        query_rows, key_rows = np.nonzero(is_found)[0], rows[is_found]
        scores = pair_scores(queries, self.keys, (query_rows, key_rows)).scores
        order = best_of_each(query_rows, scores)
        place = np.arange(len(order)) - np.searchsorted(query_rows, query_rows)  # among those of its query
        query, place, order = query_rows[place < k], place[place < k], order[place < k]
        found = SearchResult(np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64))
        found.scores[query, place], found.ids[query, place] = scores[order], key_rows[order] + self.first_id
        return found


def build_approximate(
    keys: Rows, kind: Kind, config: ApproximateConfig | None = None, *, first_id: int = 0
) -> ApproximateSearcher:
    """Build an index over keys. Groups are not known here: search keys, and group what is found.

    Args:
        keys: (N, D) float32, float16 or bfloat16, finite; read in blocks, and again when candidates are scored.
        kind: `ivf`: lists of bfloat16 rows; `ivfpq`: lists of short codes; `hnsw`: a graph over bfloat16 rows; `cagra`:
            a graph built on a GPU.
        config: what is to differ from the defaults.
        first_id: id of the first key.

    Raises:
        ValueError: the kind is unknown, or the keys are no matrix of a known type.
        InputError: there are too few keys, a key is not finite, a setting does not fit, or the faiss that is installed
            cannot build it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of approximate search {kind!r}; choose one of {', '.join(KINDS)}")
    rows = check_rows(keys, "key", width=None)
    settled = settle(config or ApproximateConfig(), kind, *rows.shape[:2])
    return ApproximateSearcher(rows, kind, settled, build_index(rows, kind, settled), first_id)


def load_approximate(path: str, keys: Rows, *, first_id: int = 0) -> ApproximateSearcher:
    """Open a saved index over the keys it was built from; lists of ivf and ivfpq stay in the file until they are read.

    Raises:
        ValueError: the keys are no matrix of a known type.
        InputError: there is none, it is damaged, or was built from other keys.
    """
    check_rows(keys[:0], "key", width=None)  # what was built from them was finite; a bank is not read to be opened
    rows = np.require(keys, requirements=["C", "A"])
    try:
        with open(f"{path}.json", encoding="utf-8") as file:
            facts = json.load(file)
        config, kind = ApproximateConfig(**facts["config"]), facts["kind"]
        index = read_index(path, kind, config)
        shape, sample, form = facts["keys"], facts["sample"], facts["format"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the approximate index {path!r} cannot be read: {error}. Build it again with build_approximate."
        ) from error
    if form != FORMAT or shape != list(rows.shape) or sample != _fingerprint(rows) or index.count != len(rows):
        raise InputError(
            f"the approximate index {path!r} was built from other keys: {shape[0]} of width {shape[1]}, got "
            f"{len(rows)} of width {rows.shape[1]}, or others of that size. Build it again with build_approximate."
        )
    return ApproximateSearcher(rows, kind, config, index, first_id)


def _fingerprint(keys: Rows) -> str:
    """A hash of up to 1,024 rows, evenly spaced."""
    return hashlib.sha256(keys[:: max(1, -(-len(keys) // 1024))].tobytes()).hexdigest()
