"""Measure image-to-text and text-to-image retrieval of a dual encoder on a captioned split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.image_listing import image_listing, plan_listing_shards, read_listing
from xmatch.data.vectors import matrix, read_vectors
from xmatch.embedding import EmbedImages
from xmatch.errors import InputError
from xmatch.evaluation.ranks import image_to_text_ranks, text_to_image_ranks
from xmatch.evaluation.report import recall_plot, retrieval_figures, table_text
from xmatch.models.checkpoints import model_hash
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class EvalRetrievalConfig:
    """Settings of one evaluation."""

    model: str
    """Dual encoder: a folder, or a hub name."""
    output: str
    """Folder for figures, plot and embeddings."""
    data: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(split="test"))
    """The captioned split."""
    batch_size: int = 32
    """Images in one forward pass."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """The split is needed."""
        if not self.data.captions:
            raise InputError("give data.captions and data.images.")


def plan(config: EvalRetrievalConfig) -> Plan:
    """Images and captions of the split."""
    split = read_split(config.data)
    return Plan([("images", f"{len(split.image_ids):,}"), ("captions", f"{len(split.captions):,}")])


def body(config: EvalRetrievalConfig, run: Run) -> Report:
    """Embed images in actors and captions here, count ranks, write figures, table and plot."""
    split = read_split(config.data)
    listing = files.join(config.output, "images.parquet")
    files.write_parquet(listing, image_listing(split.image_ids, split.image_paths))
    shards = plan_listing_shards(listing, images_per_shard=512)
    threads = max(1, int(config.ray.cpus_per_actor))
    step = EmbedImages(config.model, batch_size=config.batch_size, threads=threads)
    ledger = Ledger(
        files.join(config.output, "images"), {"model": model_hash(config.model), "images": files.sha256(listing)}
    )
    with run.progress(len(split.image_ids), "images") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(report.counts["images"])
    manifest = ledger.finish([shard.id for shard in shards])
    if manifest["counts"]["quarantined"]:
        raise InputError(
            f"{manifest['counts']['quarantined']} images of the split cannot be read, so recall would not be "
            f"comparable; see {files.join(ledger.output, 'quarantine')}."
        )
    images = np.asarray(matrix(read_vectors(ledger.output)), dtype=np.float32)
    texts = DualEncoder.from_pretrained(config.model).encode_texts(split.captions)
    i2t = image_to_text_ranks(images, texts, split.caption_image)
    t2i = text_to_image_ranks(images, texts, split.caption_image)
    figures = retrieval_figures(i2t, t2i)
    title = f"{config.data.captions.rsplit('/', 1)[-1]}, split {config.data.split}"
    record = {"figures": figures, "model": manifest["identity"]["model"], "images": len(images), "captions": len(texts)}
    files.write_json(files.join(config.output, "retrieval.json"), record)
    files.write_bytes(files.join(config.output, "recall.png"), recall_plot(i2t, t2i, title))
    rows = [("figures", files.join(config.output, "retrieval.json")), ("plot", files.join(config.output, "recall.png"))]
    return Report(rows, record, table_text(figures, f"{title}: {len(images):,} images, {len(texts):,} captions"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("eval_retrieval", EvalRetrievalConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
