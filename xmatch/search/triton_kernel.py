"""The GPU kernels of exact search: products and what they leave, the candidates of each query, their exact scores.

Shapes: Q queries, N keys, D width; a tile has BQ queries and BN keys. Column c of a tile belongs to lane c % L. G of
them are a group, P groups a lane: column (i P + p) L + l is member i of group p of lane l. A segment is a run of
tiles; a bucket is one lane of one segment, and keeps its R best groups.

A group is known by its largest score alone, whose lowest bits say which group of its bucket it is. All of that stays in
the registers that hold the products: no branch, no score in memory. Of what a bucket could not keep the largest score
is known, so that it can be told whether it mattered (docs/search.md).

The only module that knows triton; it is imported where a GPU searches, and nowhere else.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(-3e38)
"""A score no pair has."""
UNSEEN = tl.constexpr(-2e38)
"""Above NEVER, whatever was written into its lowest bits, and below any score."""


@triton.jit(do_not_specialize=["n_keys", "query_tiles", "segments", "segments_each"])
def scan(
    queries: tl.tensor,
    keys: tl.tensor,
    kept: tl.tensor,
    lost_of: tl.tensor,
    n_keys: tl.tensor,
    query_tiles: tl.tensor,
    segments: tl.tensor,
    segments_each: tl.tensor,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
    SEGMENT: tl.constexpr,
    STAGES: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Products of one tile of queries with some segments of keys, reduced to what their buckets keep.

    Programs that run at the same time share their segments, so keys come from the L2 cache.

    Args:
        queries: (Q', BK CHUNKS) bfloat16, Q' a multiple of BQ.
        keys: (N', BK CHUNKS) bfloat16, N' a multiple of BN.
        kept: (Q', segments, R, L) float32, written.
        lost_of: (Q', segments) float32, written: the largest score that a segment did not keep.
        n_keys: N.
        query_tiles: Q' / BQ.
        segments: how many.
        segments_each: segments of a program.
        BQ: queries of a tile.
        BN: keys of a tile.
        BK: columns multiplied at a time.
        CHUNKS: of the width; the queries stay on the chip where it is 1.
        GROUP: G.
        LANES: L.
        KEPT: R, 2 or 4.
        SEGMENT: tiles of a segment, a power of two.
        STAGES: depth of the pipeline of loads.
        WIDEN: multiply as float32: for the interpreter, whose product of bfloat16 is wrong.
    """
    WIDTH: tl.constexpr = BK * CHUNKS
    first_segment = (tl.program_id(0) // query_tiles) * segments_each
    last_segment = tl.minimum(first_segment + segments_each, segments)
    rows = ((tl.program_id(0) % query_tiles) * BQ + tl.arange(0, BQ)).to(tl.int64)
    columns = tl.arange(0, BK)
    query_at = queries + rows[:, None] * WIDTH + columns[None, :]
    key_at = keys + tl.arange(0, BN)[None, :] * WIDTH + columns[:, None]
    kept_at = kept + rows[:, None] * segments * (KEPT * LANES) + tl.arange(0, LANES)[None, :]
    first = tl.full([BQ, LANES], NEVER, tl.float32)
    second, third, fourth, lost = first, first, first, first
    first_tile = first_segment * SEGMENT
    last_tile = tl.minimum(last_segment * SEGMENT, tl.cdiv(n_keys, BN))
    if CHUNKS == 1:
        query = tl.load(query_at)
    for tile in tl.range(first_tile, last_tile, num_stages=STAGES if CHUNKS == 1 else 1):
        tile_at = key_at + tl.cast(tile, tl.int64) * (BN * WIDTH)
        scores = tl.zeros([BQ, BN], tl.float32)
        if CHUNKS == 1:
            scores = _products(query, tl.load(tile_at), scores, WIDEN)
        else:
            for chunk in tl.range(0, CHUNKS, num_stages=STAGES):
                query = tl.load(query_at + chunk * BK)
                scores = _products(query, tl.load(tile_at + chunk * BK), scores, WIDEN)
        if (tile + 1) * BN > n_keys:
            scores = tl.where((tile * BN + tl.arange(0, BN) < n_keys)[None, :], scores, NEVER)
        found = _best_of_groups(scores, tile, GROUP, LANES, SEGMENT)
        first, second, third, fourth, lost = _insert_all(found, first, second, third, fourth, lost, KEPT)
        if ((tile + 1) % SEGMENT == 0) | (tile + 1 == last_tile):
            at = kept_at + (tile // SEGMENT) * (KEPT * LANES)
            tl.store(at, first)
            tl.store(at + LANES, second)
            if KEPT == 4:
                tl.store(at + 2 * LANES, third)
                tl.store(at + 3 * LANES, fourth)
            tl.store(lost_of + rows * segments + tile // SEGMENT, tl.max(lost, axis=1))
            first = tl.full([BQ, LANES], NEVER, tl.float32)
            second, third, fourth, lost = first, first, first, first


@triton.jit
def _products(query: tl.tensor, key: tl.tensor, scores: tl.tensor, WIDEN: tl.constexpr) -> tl.tensor:
    """Scores with the products of a chunk added."""
    if WIDEN:
        scores = tl.dot(query.to(tl.float32), key.to(tl.float32), scores, input_precision="ieee")
    else:
        scores = tl.dot(query, key, scores)
    return scores


@triton.jit
def _best_of_groups(
    scores: tl.tensor, tile: tl.tensor, GROUP: tl.constexpr, LANES: tl.constexpr, SEGMENT: tl.constexpr
) -> tl.tensor:
    """The largest score of each group (rows, P, L), its lowest bits replaced by the group's place in its bucket."""
    PLACES: tl.constexpr = scores.shape[1] // (GROUP * LANES)
    best = tl.max(tl.reshape(scores, [scores.shape[0], GROUP, PLACES, LANES]), axis=1)
    place = (tile & (SEGMENT - 1)) * PLACES + tl.arange(0, PLACES)
    bits = (best.to(tl.int32, bitcast=True) & -(SEGMENT * PLACES)) | place[None, :, None]
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _insert_all(
    found: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    fourth: tl.tensor,
    lost: tl.tensor,
    KEPT: tl.constexpr,
) -> tl.tensor:
    """`_insert` for each place of (rows, P, L), P being a power of two."""
    PLACES: tl.constexpr = found.shape[1]
    if PLACES == 1:
        one = tl.reshape(found, [found.shape[0], found.shape[2]])
        first, second, third, fourth, lost = _insert(one, first, second, third, fourth, lost, KEPT)
    else:
        halves = tl.permute(tl.reshape(found, [found.shape[0], 2, PLACES // 2, found.shape[2]]), [0, 2, 3, 1])
        left, right = tl.split(halves)
        first, second, third, fourth, lost = _insert_all(left, first, second, third, fourth, lost, KEPT)
        first, second, third, fourth, lost = _insert_all(right, first, second, third, fourth, lost, KEPT)
    return first, second, third, fourth, lost


@triton.jit
def _insert(
    found: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    fourth: tl.tensor,
    lost: tl.tensor,
    KEPT: tl.constexpr,
) -> tl.tensor:
    """Each bucket's best with one score more, in order; what falls out raises `lost`."""
    rest = tl.minimum(first, found)
    first = tl.maximum(first, found)
    out = tl.minimum(second, rest)
    second = tl.maximum(second, rest)
    if KEPT == 4:
        rest = tl.minimum(third, out)
        third = tl.maximum(third, out)
        out = tl.minimum(fourth, rest)
        fourth = tl.maximum(fourth, rest)
    return first, second, third, fourth, tl.maximum(lost, out)


@triton.jit(do_not_specialize=["k", "segments"])
def select(
    kept: tl.tensor,
    lost_of: tl.tensor,
    room_of: tl.tensor,
    groups: tl.tensor,
    counts: tl.tensor,
    k: tl.tensor,
    segments: tl.tensor,
    BE: tl.constexpr,
    BS: tl.constexpr,
    MOST: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
    SEGMENT: tl.constexpr,
) -> None:
    """The candidates of one query: kept groups within its room of the k-th best; whether that is all of them.

    Args:
        kept: (Q', segments, R, L) of `scan`.
        lost_of: (Q', segments) of `scan`.
        room_of: (Q,) float32: how far below the k-th best approximate score a candidate may lie.
        groups: (Q, MOST) int32, written: the first key of each candidate group, member i being i P L keys further.
        counts: (Q,) int32, written: candidate groups; -1 where some may be missing.
        k: results per query.
        segments: how many.
        BE: a power of two, at least segments R L.
        BS: a power of two, at least segments.
        MOST: room for the candidates of a query.
        BN: keys of a tile.
        GROUP: G.
        LANES: L.
        KEPT: R.
        SEGMENT: tiles of a segment.
    """
    PLACES: tl.constexpr = BN // (GROUP * LANES)
    query = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BE)
    entries = segments * (KEPT * LANES)
    values = tl.load(kept + query * entries + place, mask=place < entries, other=NEVER)
    segment = tl.arange(0, BS)
    lost = tl.max(tl.load(lost_of + query * segments + segment, mask=segment < segments, other=NEVER), axis=0)
    room = tl.load(room_of + query)
    kth = _kth_largest(values, k)
    line = tl.maximum(kth - room - 2.4e-7 * (tl.abs(kth) + room), UNSEEN)  # 2^-22, for these roundings
    chosen = values >= line
    count = tl.sum(chosen.to(tl.int32), axis=0)
    spot = values.to(tl.int32, bitcast=True) & (SEGMENT * PLACES - 1)
    tile = (place // (KEPT * LANES)) * SEGMENT + spot // PLACES
    first_key = tile * BN + (spot % PLACES) * LANES + place % LANES
    at = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(groups + query * MOST + at, first_key, mask=chosen & (at < MOST))
    tl.store(counts + query, tl.where((lost < line) & (count <= MOST), count, -1))


@triton.jit
def _kth_largest(values: tl.tensor, k: tl.tensor) -> tl.tensor:
    """The k-th largest float, found bit by bit on integers that order as the floats do; NEVER where they are fewer."""
    bits = values.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    found = tl.where(tl.sum((order >= 0).to(tl.int32), axis=0) >= k, 0, -2147483648).to(tl.int32)
    for turn in range(31):
        higher = found | (1 << (30 - turn))
        found = tl.where(tl.sum((order >= higher).to(tl.int32), axis=0) >= k, higher, found)
    kth = (found ^ ((found >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(found == -2147483648, NEVER, kth)


@triton.jit(do_not_specialize=["n_keys"])
def rescore(
    queries: tl.tensor,
    keys: tl.tensor,
    groups: tl.tensor,
    counts: tl.tensor,
    sums: tl.tensor,
    rows_of: tl.tensor,
    n_keys: tl.tensor,
    width: tl.tensor,
    most: tl.tensor,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    BG: tl.constexpr,
    BD: tl.constexpr,
) -> None:
    """Scores of some candidate groups of one query, in double precision.

    Args:
        queries: (Q, D) float32, as given.
        keys: (N, D) float32, as given.
        groups: (Q, MOST) of `select`.
        counts: (Q,) of `select`.
        sums: (Q, C G) float64, written: -inf where there is no candidate.
        rows_of: (Q, C G) int32, written: the keys' rows.
        n_keys: N.
        width: D.
        most: MOST.
        GROUP: G.
        STRIDE: keys between two members of a group.
        BG: groups of a program; as many programs as BG goes into C.
        BD: columns at a time.
    """
    query = tl.program_id(0).to(tl.int64)
    member = tl.arange(0, BG * GROUP)
    entry = tl.program_id(1) * BG + member // GROUP
    count = tl.load(counts + query)
    first_key = tl.load(groups + query * most + entry, mask=entry < count, other=0)
    rows = first_key + (member % GROUP) * STRIDE
    is_there = (entry < count) & (rows < n_keys)
    products = tl.zeros([BG * GROUP, BD], tl.float64)
    if tl.program_id(1) * BG < count:
        for start in range(0, width, BD):
            columns = start + tl.arange(0, BD)
            inside = columns < width
            query_part = tl.load(queries + query * width + columns, mask=inside, other=0.0).to(tl.float64)
            key_at = keys + rows.to(tl.int64)[:, None] * width + columns[None, :]
            key_part = tl.load(key_at, mask=is_there[:, None] & inside[None, :], other=0.0).to(tl.float64)
            products += key_part * query_part[None, :]
    at = query * (tl.num_programs(1) * BG * GROUP) + tl.program_id(1) * BG * GROUP + member
    tl.store(sums + at, tl.where(is_there, tl.sum(products, axis=1), float("-inf")))
    tl.store(rows_of + at, tl.where(is_there, rows, 0))
