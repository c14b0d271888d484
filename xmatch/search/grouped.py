"""Search for images of several vectors each: groups of rows as keys, and groups of vectors as queries.

A group's score is the best of its rows' scores. Keys in groups are served by any backend of exact search
(`build_searcher(groups=...)`): among the (k - 1) V + 1 best rows there are k groups where no group has more than V rows
(docs/search.md, 6.). A query of several vectors is searched for with each of them: an item among its k best is among
the k best of the vector that it scores highest with, for whatever comes before it there comes before it here.

Shapes: R rows, G groups, Q queries, V vectors of a query, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data.key_banks import KeyBank
from xmatch.errors import InputError
from xmatch.search.contract import TopK
from xmatch.search.exact import SearchResult, merge_results
from xmatch.search.scores import Int64
from xmatch.search.searcher import Searcher, build_searcher


@dataclass(frozen=True, eq=False)
class Groups:
    """Which rows of a bank belong together.

    Attributes:
        of_rows: (R,) int64 number of each row's group; groups are numbered by their first rows.
        names: G names: the value of the column `group`, or the id of a row that has none.
    """

    of_rows: Int64
    names: pa.Array

    @property
    def sizes(self) -> Int64:
        """(G,) rows of each group."""
        return np.bincount(self.of_rows, minlength=len(self.names)).astype(np.int64)

    @property
    def are_side_by_side(self) -> bool:
        """Whether no row of another group lies between two of one."""
        return bool((np.diff(self.of_rows) >= 0).all())

    @property
    def have_views(self) -> bool:
        """Whether a group has more than one row."""
        return len(self.names) < len(self.of_rows)

    def name(self, group: int) -> str:
        """Name of a group."""
        return str(self.names[group].as_py())


def groups_of(info: pa.Table) -> Groups:
    """The groups of a bank.

    Args:
        info: R rows with `id` and, where any row has one, `group`.
    """
    ids = info.column("id")
    if "group" not in info.column_names or info.column("group").null_count == len(ids):
        return Groups(np.arange(len(ids), dtype=np.int64), ids.combine_chunks())
    named = pc.coalesce(info.column("group").cast(pa.string()), ids).combine_chunks()
    encoded = pc.dictionary_encode(named)  # in the order in which names first occur
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Groups(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary)


def grouped_searcher(bank: KeyBank, backend: str = "auto", threads: int = 1, device: str = "cpu") -> Searcher:
    """Exact search over the groups of a bank; ids are numbers of groups, ties go to the group whose first row is lower.

    Args:
        bank: with R rows.
        backend: as of `build_searcher`.
        threads: CPU threads of a search.
        device: as of `build_searcher`.

    Raises:
        InputError: a row is not finite, or the backend or the device is not there.
    """
    return build_searcher(bank.rows, backend, threads, groups=groups_of(bank.info).of_rows, device=device)


def search_views(searcher: TopK, queries: npt.NDArray[np.floating], k: int) -> SearchResult:
    """The k best of each query by its best vector.

    Args:
        searcher: over any keys, in groups or not.
        queries: (Q, V, D), V at least 1.
        k: results per query.

    Returns:
        Scores (Q, k) float32 and ids (Q, k) int64; equal scores by the lowest id.

    Raises:
        ValueError: the queries have no vectors, or are no array of three axes.
        InputError: a query is not finite.
    """
    if queries.ndim != 3 or not queries.shape[1]:
        raise ValueError(f"expected queries (Q, V, D) with V of 1 or more, got {queries.shape}")
    views = range(queries.shape[1])
    return merge_results([searcher.search(np.ascontiguousarray(queries[:, view]), k) for view in views], k)


def require_no_views(bank: KeyBank, why: str) -> None:
    """Refuse a bank in which an image has several rows.

    Raises:
        InputError: it has; names the first such image, and says why that cannot be.
    """
    column = bank.info.column("group") if "group" in bank.info.column_names else None
    if column is None or column.null_count == len(column):
        return
    groups = groups_of(bank.info)
    if groups.have_views:
        first = int(np.flatnonzero(groups.sizes > 1)[0])
        raise InputError(
            f"{bank.path!r} has {len(groups.of_rows)} vectors of {len(groups.names)} images, such as "
            f"{groups.sizes[first]} of {groups.name(first)!r}: {why}"
        )
