"""What `eval_retrieval.py --rerank mvptr` will compute, and how long that will take."""

from __future__ import annotations

import tempfile
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from alignment.mvptr import checkpoints
from alignment.mvptr.two_step_scoring import BLOCK, KEPT_BYTES, plain_cost
from alignment.mvptr.two_step_shards import PAIR_SCHEMA, ScorePairs, plan_shards
from alignment.mvptr.two_step_tuning import read_fusion
from alignment.rerank.tuned_file import refuse_tuned_split
from jobs._two_step import TwoStepJob, write_gallery
from raydeploy.forecast import PROCESS_BYTES, STARTUP_S, TOO_LITTLE, Forecast, can_measure, forecast, measure_step
from xmatch.data.captions import CaptionSet
from xmatch.data.steps import Shard
from xmatch.models.staging import local_folder


class DrawnPairs(NamedTuple):
    """A reader of as many pairs as there may be, before the first step has found which.

    Captions in order, each with images of one block, as if all images were encoded by then.
    """

    pairs: int
    captions: int
    images: int

    def __call__(self, shard: Shard) -> pa.Table:
        """The pairs of a shard, in PAIR_SCHEMA."""
        rows = np.arange(shard.start, shard.stop)
        columns = rows * self.captions // self.pairs, rows % min(self.images, BLOCK)
        return pa.table([pa.array(column) for column in columns], schema=PAIR_SCHEMA)


def most_pairs(config: TwoStepJob, gallery: CaptionSet) -> int:
    """Pairs of the second step, if none is in the pools of both directions."""
    images, captions, pools = len(gallery.image_ids), len(gallery.captions), config.two_step.pools
    return images * min(captions, pools.captions_per_image) + captions * min(images, pools.images_per_caption)


def plan_rows(config: TwoStepJob, model: str, gallery: CaptionSet) -> list[tuple[str, str]]:
    """What both steps will compute, for a person."""
    sizes = checkpoints.read_config(local_folder(model, "model")).model
    images, captions = len(gallery.image_ids), len(gallery.captions)
    most = most_pairs(config, gallery)
    each = plain_cost(sizes, most, captions, images)["multiply_adds_per_pair"]
    if config.two_step.tuned:
        tuned = read_fusion(config.two_step.tuned)
        refuse_tuned_split(tuned, gallery, config.data.split, allow=config.allow_overlap, threads=0)
    return [
        ("first step", f"{captions:,} captions and {images:,} images, each encoded alone"),
        ("second step", f"at most {most:,} pairs of {each / 1e6:,.0f} million multiply-adds"),
        ("fused", config.two_step.tuned or "no: no tuned weights are given"),
    ]


def forecast_pairs(config: TwoStepJob, model: str, gallery: CaptionSet) -> Forecast | str:
    """How long the second step will take, nearly all of the time; or why that is not known.

    Raises:
        InputError: the model has no matching head, or regions do not fit it.
    """
    if why_not := can_measure(config.ray):
        return why_not
    settings, most = config.two_step, most_pairs(config, gallery)
    with tempfile.TemporaryDirectory() as folder:
        step = ScorePairs(write_gallery(config, model, local_folder(model, "model"), gallery, folder))
        shards = plan_shards("", most, settings.pairs_per_shard)
        reader = DrawnPairs(most, len(gallery.captions), len(gallery.image_ids))
        sample = measure_step(step, reader, shards, lambda counts: counts["pairs"], config.ray.calibration_s)
    if sample is None:
        return TOO_LITTLE
    sizes = checkpoints.read_config(local_folder(model, "model")).model
    kept = min(KEPT_BYTES, 4 * sizes.lengths.vision_stream * sizes.hidden_size * len(gallery.image_ids))
    found = forecast(sample, "pairs", most, config.ray, memory_bytes=PROCESS_BYTES + kept)
    return found._replace(seconds=found.seconds + 2 * (sample.load_seconds + STARTUP_S))  # each pass has its workers
