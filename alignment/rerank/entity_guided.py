"""Entity-guided re-ranking: what the entities of a caption say of an image.

As AGREE has it (examples/agree of EasyNLP). For a caption and an image, q is their score, p_j the score of the prompt
of entity j with the image, m_j that of the caption with entity j masked. P is the mean of p_j, and with weights w

    text to image    a = (1 - w_m) q + w_m D     final = (1 - w_p) a + w_p P     D = S mean_j (q - m_j)
    image to text    a = (1 - w_p) q + w_p P     final = (1 - w_m) a + w_m D     D = S mean_j min(0, q - m_j)

Candidates outside of the pool, the best by q, are dropped. The rest is ordered by final, equal ones by a, then by q,
then by the lowest row; all three are compared as float32, as they are written.

The original sums differences over S = 10 slots, the empty ones too: these hold the vector of the empty text. Here empty
slots contribute nothing, and S times the mean over the entities that there are takes the place of the sum, so a caption
with S entities has the very same score. A caption without entities counts as neutral: P = q and D = 0.
Shapes: M captions, N images, Q queries, K candidates of a query, S slots, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from alignment.rerank.candidates import EMPTY, Float32, Int64, Lists, Way
from alignment.rerank.entity_slots import EntitySlots
from alignment.rerank.settings import EntityConfig
from xmatch.data.vectors import Rows

QUERY_BLOCK = 4096
"""Queries whose candidates are ordered at a time."""


class Evidence(NamedTuple):
    """What entities say of the candidates of every query.

    It does not depend on weights, so that these can be tuned without computing it again.

    Attributes:
        lists: (Q, K) candidates by the plain score q.
        prompts: (Q, K) float32, P.
        differences: (Q, K) float32, D.
    """

    lists: Lists
    prompts: Float32
    differences: Float32


class Guided(NamedTuple):
    """Lists as entities order them.

    Attributes:
        lists: (Q, K) candidates by the final score.
        similarities: (Q, K) their plain scores q.
        first_scores: (Q, K) their scores a of the first step.
    """

    lists: Lists
    similarities: Float32
    first_scores: Float32


def entity_evidence(way: Way, pool: Lists, images: Rows, slots: EntitySlots) -> Evidence:
    """What entities say of every candidate.

    Sums are in double precision and rounded once, so that equal vectors get equal scores wherever they lie.

    Args:
        way: t2i: queries are the M captions, candidates images; i2t: queries are the N images, candidates captions.
        pool: (Q, K) candidates by the plain score.
        images: (N, D).
        slots: of the M captions.

    Raises:
        ValueError: the vectors have different widths.
    """
    widths = {images.shape[1], slots.prompts.width, slots.masks.width}
    if len(widths) > 1:
        raise ValueError(f"images, prompts and masked captions have the widths {sorted(widths)}; expected one")
    wide, counts, size = np.asarray(images, np.float64), slots.counts, slots.prompt_rows.shape[1]
    prompts = pool.scores.astype(np.float32).reshape(-1)
    scores, differences = prompts.copy(), np.zeros_like(prompts)
    for caption, image_rows, places in _pairs(way, pool.rows):
        count = int(counts[caption])
        if not count:
            continue
        own = slots.prompts.take(slots.prompt_rows[caption, :count]), slots.masks.take(slots.mask_rows[caption, :count])
        found = np.concatenate(own).astype(np.float64) @ wide[image_rows].T  # one product of all a caption needs
        prompts[places] = found[:count].sum(0) / count
        lost = scores[places] - found[count:]
        if way == "i2t":
            np.minimum(lost, 0, out=lost)
        differences[places] = lost.sum(0) * (size / count)
    shape = pool.rows.shape
    return Evidence(pool, prompts.reshape(shape), differences.reshape(shape))


def _pairs(way: Way, rows: Int64) -> Iterator[tuple[int, Int64, Int64 | slice]]:
    """Every caption of the lists, the images to judge it with, and the places of these pairs in the flattened lists."""
    width = rows.shape[1]
    if way == "t2i":
        for caption, images in enumerate(rows):
            there = images[images != EMPTY]
            yield caption, there, slice(caption * width, caption * width + len(there))
        return
    flat = rows.reshape(-1)
    order = np.argsort(flat, kind="stable")
    captions, starts = np.unique(flat[order], return_index=True)
    for caption, start, stop in zip(captions.tolist(), starts.tolist(), [*starts[1:].tolist(), len(flat)]):
        if caption != EMPTY:
            yield caption, order[start:stop] // width, order[start:stop]


def guided_lists(way: Way, evidence: Evidence, config: EntityConfig, top_k: int) -> Guided:
    """The best candidates by what entities say of them.

    Args:
        way: direction, which decides the order of the two steps.
        evidence: (Q, K).
        config: weights, and how many of the K candidates are re-ranked.
        top_k: candidates kept.
    """
    blocks = [
        _guided_block(way, evidence, config, top_k, slice(start, start + QUERY_BLOCK))
        for start in range(0, max(1, len(evidence.prompts)), QUERY_BLOCK)
    ]
    rows, scores, plain, first = (np.concatenate(parts) for parts in zip(*blocks))
    return Guided(Lists(rows, scores), plain, first)


def _guided_block(
    way: Way, evidence: Evidence, config: EntityConfig, top_k: int, block: slice
) -> tuple[Int64, Float32, Float32, Float32]:
    """Rows, final scores, plain scores, and first scores of some queries."""
    rows, similarities = evidence.lists.rows[block, : config.pool], evidence.lists.scores[block, : config.pool]
    q, prompts, differences = (
        values.astype(np.float64)
        for values in (similarities, evidence.prompts[block, : config.pool], evidence.differences[block, : config.pool])
    )
    steps = [(config.mask_weight, differences), (config.prompt_weight, prompts)]
    scores = [q]
    for weight, term in steps if way == "t2i" else steps[::-1]:
        scores.append((1 - weight) * scores[-1] + weight * term)
    first, final = (np.where(rows == EMPTY, -np.inf, one).astype(np.float32) for one in scores[1:])
    order = np.argsort(-first, axis=1, kind="stable")
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(final, order, 1), axis=1, kind="stable"), 1)
    order = order[:, :top_k]
    final, plain, first = (np.take_along_axis(one, order, 1) for one in (final, similarities, first))
    return np.take_along_axis(rows, order, 1), final, plain, first
