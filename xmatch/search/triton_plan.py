"""How the GPU kernels divide a search: tiles that fit the chip, and how much of a bank each bucket stands for.

None of it touches the answer; a plan that keeps too little is noticed and repeated with a deeper one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

WIDEST_HELD = 256
"""Columns up to which a tile of queries stays on the chip."""
CHUNK = 64
"""Columns multiplied at a time beyond."""
SELECT_RATE, GATHER_RATE = 14.8e12, 5e12
"""Of an H200, on paper: comparisons a second, and gathered bytes a second. They steer speed only."""
MISSES = 0.003
"""Share of queries for which the first plan may keep too little."""
MOST_ENTRIES = 1 << 14
"""Kept groups of a query that one program selects from."""
MOST_SEGMENT = 512
"""Tiles of a segment: more would cost bits of the scores."""
MOST_KEYS = 1 << 24
MOST_K = 128
MOST_ROOM = 4096


class Tile(NamedTuple):
    """What one program multiplies at a time.

    Attributes:
        queries: of a tile.
        keys: of a tile.
        lanes: of a tile of keys, at most an eighth of them.
        warps: of a program.
        stages: depth of the pipeline of loads.
    """

    queries: int
    keys: int
    lanes: int
    warps: int
    stages: int


HELD_TILES = (Tile(128, 128, 16, 8, 2), Tile(128, 64, 8, 8, 2), Tile(64, 64, 8, 4, 2), Tile(32, 32, 4, 4, 2))
STREAMED_TILES = (Tile(128, 256, 16, 8, 4), Tile(128, 128, 16, 8, 3), Tile(64, 64, 8, 4, 3), Tile(32, 32, 4, 4, 2))
"""Best first, by reasoning: none of them was measured. None spills registers on compute capability 8.0 or 9.0."""


class Columns(NamedTuple):
    """A width as it is multiplied: so many chunks of so many columns, the rest zeros."""

    chunk: int
    chunks: int

    @property
    def padded(self) -> int:
        """Columns in all."""
        return self.chunk * self.chunks


class Plan(NamedTuple):
    """What a scan keeps.

    Attributes:
        group: keys known by their largest score alone.
        kept: groups kept of each bucket, 2 or 4.
        segment: tiles of a segment, a power of two.
        segments: how many.
        room: candidate groups of a query.
    """

    group: int
    kept: int
    segment: int
    segments: int
    room: int

    def entries(self, tile: Tile) -> int:
        """Kept groups of a query."""
        return self.segments * self.kept * tile.lanes

    def taken_bits(self, tile: Tile) -> int:
        """Bits of a score that say which group of its bucket it is."""
        return (self.segment * tile.keys // (self.group * tile.lanes)).bit_length() - 1


def columns_of(width: int) -> Columns:
    """In one piece up to 256 columns, unless that pads much more than pieces of 64 do."""
    whole = max(16, 1 << (width - 1).bit_length())
    pieces = -(-width // CHUNK)
    return Columns(whole, 1) if whole <= WIDEST_HELD and whole <= 1.25 * pieces * CHUNK else Columns(CHUNK, pieces)


def tile_for(columns: Columns, shared_bytes: int, has_wgmma: bool) -> Tile:
    """The best tile that fits.

    Args:
        columns: the width.
        shared_bytes: shared memory that a program may have.
        has_wgmma: whether it is a Hopper, whose warp groups hold larger tiles.
    """
    tiles = HELD_TILES if columns.chunks == 1 else STREAMED_TILES
    for tile in tiles:
        held = tile.queries * columns.chunk * (1 if columns.chunks == 1 else tile.stages)
        scratch = 4 * tile.queries * tile.lanes
        fits = 2 * (held + tile.stages * tile.keys * columns.chunk) + scratch <= shared_bytes
        if fits and (tile.keys <= 128 or has_wgmma):
            return tile
    return tiles[-1]


def plan_for(
    count: int, width: int, k: int, tile: Tile, query_tiles: int, programs: int, is_deep: bool = False
) -> Plan:
    """A plan by which few queries, or with `is_deep` very few, have candidates that were not kept.

    Some 2 k + 2 keys reach a query's line. That more than R of them share one of B buckets has a chance of about
    contenders^(R+1) / ((R+1)! B^R), which gives B.

    Args:
        count: N.
        width: D.
        k: results per query, at most MOST_K.
        tile: of the scan.
        query_tiles: tiles of queries.
        programs: that run at a time.
        is_deep: for eight times as many contenders.
    """
    kept = 4 if is_deep or k > 16 else 2
    contenders = (2 * k + 2) * (8 if is_deep else 1)
    buckets = (contenders ** (kept + 1) / math.factorial(kept + 1) / MISSES) ** (1 / kept)
    tiles = -(-count // tile.keys)
    most = MOST_ENTRIES // (kept * tile.lanes)
    wanted = min(most, max(math.ceil(buckets / tile.lanes), math.ceil(programs / query_tiles)))
    segment = min(MOST_SEGMENT, 1 << (max(1, tiles // wanted).bit_length() - 1))
    while -(-tiles // segment) > most:
        segment *= 2
    group = min((2, 4, 8), key=lambda size: _seconds(count, width, contenders, size, kept))
    room = MOST_ROOM if is_deep else min(MOST_ROOM, 1 << (4 * k + 27).bit_length())
    return Plan(group, kept, segment, -(-tiles // segment), room)


def _seconds(count: int, width: int, contenders: int, group: int, kept: int) -> float:
    """Of a query: comparisons while it scans, and bytes of the candidates that are scored again."""
    comparisons = count * (group - 1 + 1 + 2 * kept) / group
    return comparisons / SELECT_RATE + 4 * contenders * group * width / GATHER_RATE
