"""Turn images into a key bank, or texts into a bank of sentence embeddings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.streams import run_shards
from xmatch.data import files
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards
from xmatch.data.steps import Reader, Shard, Step
from xmatch.data.text_lines import LineSource, TextReader, plan_line_shards
from xmatch.embedding import EmbedImages, EmbedTexts
from xmatch.errors import InputError
from xmatch.models.checkpoints import model_hash


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Settings of one embedding run."""

    side: Literal["image", "text"]
    """Which tower: `image` makes a key bank, `text` a bank of sentence embeddings."""
    model: str
    """Dual encoder: a folder, or a hub name."""
    output: str
    """Folder for the bank."""
    images: ImageSource = field(default_factory=ImageSource)
    """The images of `--side image`."""
    texts: LineSource = field(default_factory=LineSource)
    """The texts of `--side text`."""
    rows_per_shard: int = 1024
    """Images or texts in one shard, the unit of resume."""
    batch_size: int = 32
    """Rows in one forward pass."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Each side needs its own input."""
        if self.side == "image" and not self.images.root:
            raise InputError("--side image needs images: give --images.root and --images.set_name.")
        if self.side == "text" and not self.texts.path:
            raise InputError("--side text needs --texts.path, a file with one text a line.")


def work_of(config: EmbedConfig) -> tuple[list[Shard], Reader, Step]:
    """The shards of a run, what reads them, and what embeds them."""
    threads = max(1, int(config.ray.cpus_per_actor))
    if config.side == "image":
        shards = plan_image_shards(config.images, config.rows_per_shard)
        step = EmbedImages(config.model, batch_size=config.batch_size, threads=threads, device=config.device)
        return shards, ImageReader(config.images), step
    texts = EmbedTexts(config.model, batch_size=config.batch_size, threads=threads, device=config.device)
    return plan_line_shards(config.texts, config.rows_per_shard), TextReader(config.texts), texts


def plan(config: EmbedConfig) -> Plan:
    """Shards and layout."""
    shards, _, _ = work_of(config)
    return Plan(
        [
            ("side", config.side),
            ("shards", f"{len(shards):,} of up to {config.rows_per_shard:,} rows"),
            ("actors", f"{config.ray.actors} x {config.ray.cpus_per_actor:g} CPU, {config.ray.gpus_per_actor:g} GPU"),
        ]
    )


def body(config: EmbedConfig, run: Run) -> Report:
    """Stream the shards through the tower."""
    shards, reader, step = work_of(config)
    source = repr(config.images) if config.side == "image" else f"{config.texts} {files.sha256(config.texts.path)}"
    identity = {"side": config.side, "model": model_hash(config.model), "source": source, "batch": config.batch_size}
    ledger = Ledger(config.output, identity)
    with run.progress(None, f"{config.side}s") as progress:
        for report in run_shards(shards, reader, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(sum(report.counts.values()))
    manifest = ledger.finish([shard.id for shard in shards])
    rows = [("bank", files.join(config.output, "shards")), *progress.rates()]
    return Report(rows + [(n, f"{c:,}") for n, c in manifest["counts"].items()], {"counts": manifest["counts"]})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("embed", EmbedConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
