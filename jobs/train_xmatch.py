"""Train an image-text dual encoder from captioned images, on Ray Train."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raydeploy.connect import RayConfig
from raydeploy.ledger import Ledger
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.streams import run_shards
from raydeploy.training import TrainerConfig, fit
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.image_listing import image_listing, plan_listing_shards, read_listing
from xmatch.data.tokenizers import train_wordpiece
from xmatch.embedding import ImageFeatures
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, LossConfig
from xmatch.training.optim import OptimConfig
from xmatch.training.samples import CaptionsConfig, read_split, write_samples


@dataclass(frozen=True, kw_only=True)
class TrainXmatchConfig:
    """Settings of one training run."""

    output: str
    """Folder for the model, its checkpoints and the record of the run."""
    train: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captioned images to learn from."""
    valid: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(split="val"))
    """Captioned images that choose the best epoch; never learnt from."""
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """Towers, heads and the shared space."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length, workers and checkpoints."""
    augment: Literal["random_crop", "flip", "none"] = "random_crop"
    """`random_crop`: decode and crop anew each epoch, as published. `flip` and `none` compute the features of a frozen
    image tower once, with or without mirror images."""
    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the final model's weights."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        if not self.train.captions or not self.valid.captions:
            raise InputError("give train.captions, train.images, valid.captions and valid.images.")
        if self.augment != "random_crop" and self.model.image.trainable != "none":
            raise InputError(
                f"augment={self.augment!r} computes image features once, which needs a frozen image tower, but "
                f"model.image.trainable is {self.model.image.trainable!r}. Use augment=random_crop."
            )


def plan(config: TrainXmatchConfig) -> Plan:
    """What the run will do, from the captions alone."""
    train, valid = read_split(config.train), read_split(config.valid)
    steps = -(-len(train.captions) // config.trainer.batch_size)
    cached = "decoded anew each epoch" if config.augment == "random_crop" else "features computed once"
    return Plan(
        [
            ("training", f"{len(train.captions):,} captions of {len(train.image_ids):,} images"),
            ("validation", f"{len(valid.captions):,} captions of {len(valid.image_ids):,} images"),
            ("images", cached),
            ("steps", f"{steps:,} x {config.trainer.epochs} epochs of {config.trainer.batch_size} captions"),
            ("workers", f"{config.trainer.workers} x {config.trainer.cpus_per_worker} CPU"),
        ]
    )


def body(config: TrainXmatchConfig, run: Run) -> Report:
    """Samples to Arrow, features where the tower is frozen, epochs, and the best model."""
    data = {"train": files.join(config.output, "data", "train"), "valid": files.join(config.output, "data", "valid")}
    train, valid = read_split(config.train), read_split(config.valid)
    write_samples(train, data["train"])
    write_samples(valid, data["valid"])
    features = None if config.augment == "random_crop" else compute_features(config, run, [train, valid])
    recipe = partial(
        DualEncoderRecipe,
        model=config.model,
        tokenizer=build_tokenizer(config, train.captions),
        loss=config.loss,
        weight_decay=config.optim.weight_decay,
        train_folder=data["train"],
        valid_folder=data["valid"],
        features=features,
    )
    with run.progress(config.trainer.epochs, "epochs") as progress:
        result = fit(recipe, config.trainer, config.optim, config.output, on_epoch=progress.figures)
    folder = files.join(config.output, "model")
    DualEncoder.from_pretrained(result.best_folder).save_pretrained(folder, dtype=config.save_dtype)
    best = result.history[result.best_epoch]
    rows = [("model", folder), ("best epoch", str(result.best_epoch)), ("captions/s", f"{result.samples_per_s:,.0f}")]
    rows += [(name, f"{value:.2f}") for name, value in best.items() if isinstance(value, float) and "_at_" in name]
    return Report([*rows, ("rsum", f"{best['rsum']:.1f}")], {"best": best, "history": result.history})


def compute_features(config: TrainXmatchConfig, run: Run, splits: Sequence[CaptionSet]) -> str:
    """The frozen image tower's features of every image of the splits, as a resumable bank; its folder."""
    folder = files.join(config.output, "features")
    images = {i: p for split in splits for i, p in zip(split.image_ids, split.image_paths, strict=True)}
    listing = files.join(config.output, "data", "images.parquet")
    files.write_parquet(listing, image_listing(list(images), list(images.values())))
    views: tuple[Literal["center", "flip"], ...] = ("center", "flip") if config.augment == "flip" else ("center",)
    step = ImageFeatures(config.model.image, views=views, threads=int(config.ray.cpus_per_actor))
    shards = plan_listing_shards(listing, images_per_shard=512)
    ledger = Ledger(folder, {"tower": repr(config.model.image), "views": list(views), "images": files.sha256(listing)})
    with run.progress(len(images), "images") as progress:
        for report in run_shards(shards, read_listing, step, ledger, suffix="arrow", ray=config.ray):
            progress.advance(report.counts["images"] + report.counts["quarantined"])
    ledger.finish([shard.id for shard in shards])
    return files.join(folder, "shards")


def build_tokenizer(config: TrainXmatchConfig, captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """The text tower's own tokenizer, or for a tower from scratch a WordPiece vocabulary of the training captions."""
    if config.model.text.name is None:
        return train_wordpiece(captions, config.model.text.vocab_size)
    return AutoTokenizer.from_pretrained(config.model.text.name, use_fast=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("train_xmatch", TrainXmatchConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
