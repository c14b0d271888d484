"""Two-step retrieval over shards: sides to vectors, and pairs to fine scores.

A folder holds what both passes read: samples.arrow, the captions; images.json, the images in their order; pairs.arrow,
the pairs of the second pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from alignment.mvptr import checkpoints
from alignment.mvptr.heads import Matcher
from alignment.mvptr.pair_inputs import PairInputs, TagConfig
from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.tasks.samples import read_samples
from alignment.mvptr.two_step import Pairs
from alignment.mvptr.two_step_scoring import PairScorer
from xmatch.data import files
from xmatch.data.steps import Shard, StepOutput, no_quarantine, shard_name
from xmatch.data.vectors import make_vectors, open_arrow
from xmatch.errors import InputError

SAMPLES_FILE, IMAGES_FILE, PAIRS_FILE = "samples.arrow", "images.json", "pairs.arrow"
PAIR_SCHEMA = pa.schema([("caption", pa.int64()), ("image", pa.int64())])
SCORED_SCHEMA = PAIR_SCHEMA.append(pa.field("score", pa.float32()))
"""One row a pair: rows of caption and image in the split, and how surely they belong together, from 0 to 1."""


class Gallery(NamedTuple):
    """What a worker needs to encode a split: all plain, so that it travels.

    model: a saved MVPTR with a matching head. folder: with SAMPLES_FILE and IMAGES_FILE. regions: places of regions.
    tags: what becomes of the object tags. threads: of torch.
    """

    model: str
    folder: str
    regions: tuple[str, ...]
    tags: TagConfig = TagConfig()
    threads: int = 1

    def open(self) -> PairScorer:
        """Model and inputs, on a GPU where there is one.

        Raises:
            InputError: the model has no matching head, or files are broken or do not fit it.
        """
        torch.set_num_threads(self.threads)
        saved = checkpoints.load(self.model)
        if not isinstance(saved.model, Matcher):
            raise InputError(
                f"{self.model!r} is an MVPTR for {saved.model.head.task}; two-step retrieval needs one for "
                "pretraining or retrieval, which tells whether text and image belong together."
            )
        config = saved.model.config
        path = files.join(self.folder, SAMPLES_FILE)
        inputs = PairInputs(
            read_samples(files.local_copy(path)),
            RegionBanks(self.regions, config.region_width),
            saved.tokenizer,
            config.lengths,
            self.tags,
            path,
            files.read_json(files.join(self.folder, IMAGES_FILE)),
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return PairScorer(saved.model.to(device).eval(), inputs)


class _ScorerStep:
    """A step that opens its scorer on the first call and keeps it, with its encoded images."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.seconds: dict[str, float] = {}
        self._scorer: PairScorer | None = None

    def _open(self) -> PairScorer:
        if self._scorer is None:
            self._scorer = self.gallery.open()
        return self._scorer

    def _took(self, stage: str, started: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


class EncodeSide(_ScorerStep):
    """A step: rows of captions or images (column `row`) to a table of vectors with the ids given.

    Args:
        gallery: the split.
        side: which of the two.
        ids: of all captions or images.
    """

    def __init__(self, gallery: Gallery, side: Literal["texts", "images"], ids: Sequence[str]) -> None:
        super().__init__(gallery)
        self.side, self.ids = side, list(ids)

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vectors of one shard, in row order."""
        scorer, numbers = self._open(), rows.column("row").to_numpy()
        started = time.perf_counter()
        made = scorer.text_vectors(numbers) if self.side == "texts" else scorer.image_vectors(numbers)
        self._took("encode", started)
        table = make_vectors([self.ids[row] for row in numbers.tolist()], made)
        return StepOutput(table, {self.side: len(made)}, no_quarantine())


class ScorePairs(_ScorerStep):
    """A step: pairs of PAIR_SCHEMA to rows of SCORED_SCHEMA."""

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Fine scores of one shard, in row order."""
        scorer = self._open()
        started = time.perf_counter()
        scores = scorer.scores(rows.column("caption").to_numpy(), rows.column("image").to_numpy())
        self._took("score", started)
        table = pa.table([*rows.columns, pa.array(scores, pa.float32())], schema=SCORED_SCHEMA)
        return StepOutput(table, {"pairs": len(scores)}, no_quarantine())


class RowReader:
    """A reader: the numbers of a shard's rows, in the column `row`."""

    def __call__(self, shard: Shard) -> pa.Table:
        """One row each."""
        return pa.table({"row": pa.array(range(shard.start, shard.stop), pa.int64())})


class PairReader:
    """A reader: the pairs of a shard, from a file of PAIR_SCHEMA."""

    def __call__(self, shard: Shard) -> pa.Table:
        """Rows `start` to before `stop`."""
        table = open_arrow(shard.source).read_all()
        return table.slice(shard.start, shard.stop - shard.start).combine_chunks()


def write_pairs(path: str, pairs: Pairs) -> None:
    """Write pairs as one Arrow file, atomically."""
    table = pa.table([pa.array(pairs.caption), pa.array(pairs.image)], schema=PAIR_SCHEMA)
    with files.open_atomic(path) as sink, pa.ipc.new_file(sink, PAIR_SCHEMA) as writer:
        writer.write_table(table)


def plan_shards(source: str, count: int, each: int) -> list[Shard]:
    """Shards of so many rows each."""
    starts = range(0, count, each)
    return [Shard(shard_name(at), source, start, min(start + each, count)) for at, start in enumerate(starts)]


def plan_pair_shards(source: str, pairs: Pairs, each: int) -> list[Shard]:
    """Shards of about so many pairs, cut between captions, so that each caption is encoded in one shard alone."""
    if not len(pairs):
        return []
    firsts = np.flatnonzero(np.concatenate([[True], pairs.caption[1:] != pairs.caption[:-1]]))
    wanted = np.arange(0, len(pairs), each)
    starts = np.unique(firsts[np.searchsorted(firsts, wanted, side="right") - 1]).tolist()
    ends = [*starts[1:], len(pairs)]
    return [Shard(shard_name(at), source, *span) for at, span in enumerate(zip(starts, ends, strict=True))]


def read_scores(paths: Sequence[str], pairs: Pairs) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The fine scores in finished shards, in the pairs' order, float32 of shape (P,).

    Raises:
        InputError: the shards hold other pairs.
    """
    tables = [files.read_parquet(path) for path in paths]
    table = pa.concat_tables([SCORED_SCHEMA.empty_table(), *tables])
    same = len(table) == len(pairs) and all(
        np.array_equal(table.column(name).to_numpy(), getattr(pairs, name)) for name in PAIR_SCHEMA.names
    )
    if not same:
        where = paths[0].rsplit("/", 1)[0] if paths else "no shard"
        raise InputError(f"{where!r} holds {len(table):,} scores of other pairs; remove that folder.")
    scores: np.ndarray[tuple[int], np.dtype[np.float32]] = table.column("score").to_numpy()
    return scores
