"""Certified search on an NVIDIA GPU: bfloat16 products with their selection, then exact scores, all on the GPU.

The kernels are in triton_kernel.py, loaded where they are used; in tests without a GPU triton's interpreter runs them.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch

from xmatch.errors import InputError
from xmatch.search.exact import LARGEST_SCORE, LOST_BELOW, Found, Keys, SearchCounts, certify
from xmatch.search.scores import Float32, Int64, blocks, pair_scores, sum_error
from xmatch.search.triton_plan import MOST_K, MOST_KEYS, Columns, Plan, Tile, columns_of, plan_for, tile_for

SLACK = 1 + 1e-6
"""By which norms are enlarged, far more than their double-precision sums are off."""
LARGEST_ROW = 2**31 - 1
BLOCK_ENTRIES = 1 << 27
"""Kept groups of a block of queries, 512 MiB."""
BLOCK_VALUES = 1 << 25
"""Values of a block of queries, held in double precision a few times."""
BLOCK_PAIRS = 1 << 24
"""Pairs that are ordered at a time, some 40 bytes each."""
KEY_BLOCK = 1 << 16
"""Keys in double precision at a time."""
DENSE_SCORES = 1 << 27
"""Float32 scores at a time where every key is scored."""
GATHERED = 64
GATHERED_COLUMNS = 32
"""Keys, and columns of them, that one program reads at a time to score them in double precision."""
PROGRAMS_EACH = 2
"""Programs that a multiprocessor runs at a time; segments are shared out to eight rounds of them."""
ROUNDS = 8


class Answer(NamedTuple):
    """Scores (Q, k) float32 and rows (Q, k) int64 on the device, and what they took."""

    scores: torch.Tensor
    rows: torch.Tensor
    counts: SearchCounts


class _Asked(NamedTuple):
    """Queries as they are multiplied (Q', D') bfloat16; how far below the k-th best candidates reach (Q,) float32."""

    rows: torch.Tensor
    room: torch.Tensor


class _Near(NamedTuple):
    """Candidate groups (Q, C) int32 by their first keys, and their number (Q,) int32: -1 where some may be missing."""

    groups: torch.Tensor
    counts: torch.Tensor


def is_interpreted() -> bool:
    """Whether triton runs kernels in its interpreter, on the processor."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_gpu() -> bool:
    """Whether triton is installed and torch sees an NVIDIA GPU that multiplies bfloat16."""
    return (
        importlib.util.find_spec("triton") is not None
        and torch.cuda.is_available()
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability() >= (8, 0)
    )


class TritonScan:
    """Certified search on a GPU, which holds the keys twice, as given (float32) and as they are multiplied (bfloat16).

    Args:
        keys: (N, D) and their norms, N at most 16,777,216.
        threads: of no use to a GPU.
        device: the GPU; the current one when not given.
        tile: what a program multiplies at a time; one that fits when not given.

    Raises:
        InputError: there is no such GPU, or there are too many keys.
    """

    def __init__(self, keys: Keys, threads: int, device: str | None = None, tile: Tile | None = None) -> None:
        if not (has_gpu() or is_interpreted()):
            raise InputError(
                "the search backend 'triton' needs the package triton and an NVIDIA GPU of compute capability 8.0 or "
                "later, which torch does not see here. Choose auto, native, torch or faiss."
            )
        if len(keys.rows) > MOST_KEYS:
            raise InputError(
                f"the search backend 'triton' holds at most {MOST_KEYS} keys, got {len(keys.rows)}. Build a searcher "
                "for each shard of them, with first_id, and merge what they find with merge_results."
            )
        self._keys = keys
        self.device = torch.device(device or ("cpu" if is_interpreted() else "cuda"))
        count, width = keys.rows.shape
        self.columns = columns_of(width)
        self.tile = tile or _tile_of(self.device, self.columns)
        self._programs = PROGRAMS_EACH * _processors(self.device)
        self._rows = torch.empty((count, width), device=self.device)
        for start, block in blocks(keys.rows):
            self._rows[start : start + len(block)] = torch.from_numpy(np.array(block))
        self._norms = torch.from_numpy(keys.norms).to(self.device)
        self._round_keys()

    def _round_keys(self) -> None:
        """Centres, scales and rounds the keys, and measures what that took."""
        count, width = self._rows.shape
        padded = -(-count // self.tile.keys) * self.tile.keys
        self._unit = float(_powers(self._rows.abs().max().double()))
        total = torch.zeros(width, dtype=torch.float64, device=self.device)
        for start in range(0, count, KEY_BLOCK):
            total += self._rows[start : start + KEY_BLOCK].double().sum(0)
        self._centre = total / (count * self._unit)
        self._rounded = torch.zeros((padded, self.columns.padded), dtype=torch.bfloat16, device=self.device)
        largest, lost = 0.0, 0.0
        for start in range(0, count, KEY_BLOCK):
            exact = self._rows[start : start + KEY_BLOCK].double() / self._unit - self._centre
            rounded = _rounded(exact)
            self._rounded[start : start + len(exact), :width] = rounded
            largest = max(largest, float(_norms(rounded).max()))
            lost = max(lost, float(_norms(exact - rounded).max()))
        self._largest, self._lost = largest * SLACK, lost * SLACK
        self._reach = self._keys.largest_norm / self._unit + 2 * float(self._centre.norm())

    def top(self, queries: Float32, k: int) -> Found:
        """The exact k best keys of each query."""
        given = torch.from_numpy(queries if queries.flags.writeable else queries.copy())
        found = self.top_of(given.to(self.device), k)
        return Found(found.scores.cpu().numpy(), found.rows.cpu().numpy(), found.counts)

    def top_of(self, queries: torch.Tensor, k: int) -> Answer:
        """The exact k best keys of each query, for queries that are on the device.

        Args:
            queries: (Q, D) float32, contiguous and finite.
            k: results per query, 1 <= k <= N. Beyond 128 every key is scored in float32, which counts as a fallback.
        """
        answer = Answer(
            torch.empty((len(queries), k), device=self.device),
            torch.empty((len(queries), k), dtype=torch.int64, device=self.device),
            SearchCounts(queries=len(queries)),
        )
        norms = _norms(queries) * SLACK
        within = norms * self._keys.largest_norm < LARGEST_SCORE
        beyond, open_rows = (~within).nonzero()[:, 0], within.nonzero()[:, 0]
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            for is_deep in (False, True) if k <= MOST_K else ():
                answer, open_rows = self._round(queries, norms, open_rows, answer, is_deep)
            return self._every_key(queries, torch.cat([open_rows, beyond]), answer)

    def _round(
        self, queries: torch.Tensor, norms: torch.Tensor, asked: torch.Tensor, answer: Answer, is_deep: bool
    ) -> tuple[Answer, torch.Tensor]:
        """Answers those of the rows `asked`, of queries (Q, D), that a scan certifies, and gives back the others."""
        count, k = len(self._rows), answer.scores.shape[1]
        query_tiles = -(-len(asked) // self.tile.queries)
        plan = plan_for(count, self._rows.shape[1], k, self.tile, max(1, query_tiles), self._programs, is_deep)
        step = min(BLOCK_ENTRIES // plan.entries(self.tile), BLOCK_VALUES // self._rows.shape[1])
        left, counts = [asked[:0]], answer.counts
        for block in _parts(asked, step):
            near = self._near(self._asked(queries[block], norms[block], plan), k, plan)
            is_sure = near.counts >= 0
            left.append(block[~is_sure])
            sure, near = block[is_sure], _Near(near.groups[is_sure], near.counts[is_sure])
            room = 1 << (max(1, int(near.counts.max())) - 1).bit_length() if len(sure) else 1
            for part in _parts(torch.arange(len(sure), device=self.device), BLOCK_PAIRS // (room * plan.group)):
                rows = sure[part]
                some = _Near(near.groups[part], near.counts[part])
                found = self._best(queries[rows], norms[rows], some, room, plan, k)
                answer.scores[rows], answer.rows[rows] = found.scores, found.rows
                counts = counts.plus(found.counts)
        return answer._replace(counts=counts), torch.cat(left)

    def _asked(self, queries: torch.Tensor, norms: torch.Tensor, plan: Plan) -> _Asked:
        """Queries (Q, D) scaled, rounded and padded, and how far below their k-th best to look."""
        units = _powers(queries.abs().amax(1).double())
        exact = queries.double() / units[:, None]
        rounded = _rounded(exact)
        lost, size = _norms(exact - rounded) * SLACK, _norms(rounded) * SLACK
        width = self.columns.padded
        products = 4 * (width + 4) * 2.0**-24
        taken = 2.0 ** (plan.taken_bits(self.tile) - 23)
        bounds = lost * (self._largest + self._lost) + size * self._lost
        bounds += (products + (1 + products) * taken) * size * self._largest
        # the small part of the whole reach: this arithmetic, and the double-precision centring before it
        bounds = bounds * 1.000001 + 2.0**-40 * norms / units * self._reach + (width + 4) * LOST_BELOW
        margin = (2.0**-23 * norms * self._keys.largest_norm + 2.0**-149) / (units * self._unit)
        padded = torch.zeros(
            (-(-len(queries) // self.tile.queries) * self.tile.queries, width),
            dtype=torch.bfloat16,
            device=self.device,
        )
        padded[: len(queries), : queries.shape[1]] = rounded
        return _Asked(padded, ((2 * bounds + margin) * SLACK).float())

    def _near(self, asked: _Asked, k: int, plan: Plan) -> _Near:
        from xmatch.search.triton_kernel import scan, select

        tile, columns = self.tile, self.columns
        query_tiles = len(asked.rows) // tile.queries
        shares = min(plan.segments, -(-ROUNDS * self._programs // query_tiles))
        each = -(-plan.segments // shares)
        kept = torch.empty((len(asked.rows), plan.entries(tile)), device=self.device)
        lost = torch.empty((len(asked.rows), plan.segments), device=self.device)
        shape = {"BN": tile.keys, "GROUP": plan.group, "LANES": tile.lanes, "KEPT": plan.kept, "SEGMENT": plan.segment}
        scan[(query_tiles * -(-plan.segments // each),)](
            *(asked.rows, self._rounded, kept, lost, len(self._rows), query_tiles, plan.segments, each),
            BQ=tile.queries,
            BK=columns.chunk,
            CHUNKS=columns.chunks,
            STAGES=tile.stages,
            WIDEN=is_interpreted(),
            num_warps=tile.warps,
            enable_fp_fusion=True,
            **shape,
        )
        count = len(asked.room)
        groups = torch.empty((count, plan.room), dtype=torch.int32, device=self.device)
        counts = torch.empty(count, dtype=torch.int32, device=self.device)
        entries = plan.entries(tile)
        select[(count,)](
            *(kept, lost, asked.room, groups, counts, k, plan.segments),
            BE=_power_above(entries),
            BS=_power_above(plan.segments),
            MOST=plan.room,
            num_warps=max(4, _power_above(entries) // 1024),
            enable_fp_fusion=True,
            **shape,
        )
        return _Near(groups, counts)

    def _best(self, queries: torch.Tensor, norms: torch.Tensor, near: _Near, room: int, plan: Plan, k: int) -> Answer:
        """The k best (Q, k) of each query's candidates, by exact score, ties to the lowest row."""
        from xmatch.search.triton_kernel import rescore

        count, width = queries.shape
        sums = torch.empty((count, room * plan.group), dtype=torch.float64, device=self.device)
        rows = torch.empty((count, room * plan.group), dtype=torch.int32, device=self.device)
        together = min(room, GATHERED // plan.group)
        rescore[(count, room // together)](
            *(queries, self._rows, near.groups, near.counts, sums, rows, len(self._rows), width, plan.room),
            GROUP=plan.group,
            STRIDE=self.tile.keys // plan.group,
            BG=together,
            BD=GATHERED_COLUMNS,
            num_warps=4,
            enable_fp_fusion=True,
        )
        is_there = ~sums.isneginf()
        error = sum_error(width) * norms[:, None] * self._norms[rows]
        scores, high = (sums - error).float(), (sums + error).float()
        asked, place = ((scores != high) & is_there).nonzero(as_tuple=True)
        if len(asked):
            pairs = np.arange(len(asked)), rows[asked, place].cpu().numpy().astype(np.int64)
            exact = pair_scores(queries[asked].cpu().numpy(), self._keys.rows, pairs, self._keys.norms)
            scores[asked, place] = torch.from_numpy(exact.scores).to(self.device)
        best = torch.where(is_there, _numbers(scores + 0.0, rows), torch.iinfo(torch.int64).min).topk(k).values
        pair_count = int(is_there.sum())
        counts = SearchCounts(candidates=pair_count, rescored=pair_count, exact_sums=len(asked))
        return Answer(_floats((best >> 32).int()), LARGEST_ROW - (best & 0xFFFFFFFF), counts)

    def _every_key(self, queries: torch.Tensor, asked: torch.Tensor, answer: Answer) -> Answer:
        """Answers the rows `asked`, of queries (Q, D), by scoring every key."""
        if not len(asked):
            return answer
        found = certify(self._float32_best, queries[asked].cpu().numpy(), self._keys, answer.scores.shape[1])
        answer.scores[asked] = torch.from_numpy(found.scores).to(self.device)
        answer.rows[asked] = torch.from_numpy(found.rows).to(self.device)
        return answer._replace(counts=answer.counts.plus(found.counts._replace(queries=0, fallbacks=len(asked))))

    def _float32_best(self, queries: Float32, depth: int) -> tuple[Float32, Int64]:
        given = torch.from_numpy(queries).to(self.device)
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # lower settings round the operands, which the bound knows not of
        try:
            step = DENSE_SCORES // len(self._rows)
            parts = [(block @ self._rows.T).topk(depth) for block in _parts(given, step)]
        finally:
            torch.set_float32_matmul_precision(precision)
        scores, rows = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return scores, rows


def _parts(rows: torch.Tensor, step: int) -> list[torch.Tensor]:
    """Rows of shape (R,) or (R, D), at most `step` at a time."""
    step = max(1, step)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _numbers(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Whole numbers (Q, C) int64 that order as the scores do, equal scores by the lowest row."""
    bits = scores.view(torch.int32)
    order = bits ^ ((bits >> 31) & LARGEST_ROW)
    return (order.long() << 32) | (LARGEST_ROW - rows).long()


def _floats(order: torch.Tensor) -> torch.Tensor:
    """The scores (Q, k) of the upper halves of `_numbers`."""
    return (order ^ ((order >> 31) & LARGEST_ROW)).view(torch.float32)


def _rounded(exact: torch.Tensor) -> torch.Tensor:
    """Rows (R, D) as bfloat16; what the products may read as zero is zero."""
    rounded = exact.to(torch.bfloat16)
    return torch.where(rounded.abs() < 2.0**-126, 0.0, rounded)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """L2 norms of rows (R, D), in double precision."""
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def _powers(largest: torch.Tensor) -> torch.Tensor:
    """Powers of two that bring positive doubles of any shape into [0.5, 1); 1 for zeros. Dividing by them is exact."""
    return ((torch.frexp(largest).exponent.long() + 1023) << 52).view(torch.float64)


def _power_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _tile_of(device: torch.device, columns: Columns) -> Tile:
    if device.type != "cuda":
        return tile_for(columns, 1 << 30, False)
    properties = torch.cuda.get_device_properties(device)
    return tile_for(columns, properties.shared_memory_per_block_optin, properties.major == 9)
