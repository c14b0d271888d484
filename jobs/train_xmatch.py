"""Train an image-text dual encoder from captioned images, on Ray Train."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import PreTrainedTokenizerBase

from raydeploy.connect import RayConfig
from raydeploy.feature_bank import image_feature_bank, require_same_tower, text_feature_bank
from raydeploy.forecast import TOO_LITTLE, Forecast, Sample, can_measure, measure_step
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import model_for_workers, place_for_workers
from raydeploy.training import TrainerConfig, fit, read_history
from raydeploy.training_forecast import training_fact, training_forecast
from raydeploy.training_rows import bad_rows, best_of, result_rows, size_of, workers_of
from xmatch.data import files
from xmatch.data.augment import SizeAugmentConfig
from xmatch.data.captions import CaptionSet
from xmatch.data.image_listing import image_listing
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.data.steps import Shard
from xmatch.data.vectors import write_vectors
from xmatch.embedding import ImageFeatures
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.training.dual_encoder_recipe import RecipeConfig, RecipeData
from xmatch.training.initial_weights import starting_tokenizer
from xmatch.training.leakage import seen_record
from xmatch.training.objectives import LossConfig
from xmatch.training.optim import OptimConfig
from xmatch.training.recipe import Recipe
from xmatch.training.recipes import RECIPES
from xmatch.training.samples import CaptionsConfig, read_split, write_samples
from xmatch.training.side_losses import SideLossConfig
from xmatch.training.trained_model import publish_model, trained_card
from xmatch.training.trial import try_steps


@dataclass(frozen=True, kw_only=True)
class TrainXmatchConfig:
    """Settings of one training run."""

    output: str
    """Folder or s3:// prefix for the model, its checkpoints and the record of the run."""
    recipe: Literal["dual_encoder", "text_pairs"] = "dual_encoder"
    """What is trained: `dual_encoder` on images and captions; `text_pairs` the text tower alone, on captions of which
    two describe one image (a start for `init_from`)."""
    train: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captioned images to learn from."""
    valid: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(split="val"))
    """Captioned images that choose the best epoch; never learnt from."""
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    """Towers, heads, poolings and the shared space."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    side_losses: SideLossConfig = field(default_factory=SideLossConfig)
    """Losses beside it, for recipe=dual_encoder: captions written from regions (VSRN), views that differ (CAMERA)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length, workers, steps and checkpoints."""
    augment: Literal["random_crop", "flip", "none"] = "random_crop"
    """`random_crop`: decode and crop anew each epoch, as published. `flip` and `none` compute the features of a frozen
    image tower once, with or without mirror images."""
    size_augment: SizeAugmentConfig = field(default_factory=SizeAugmentConfig)
    """How many words, regions and grid cells are dropped."""
    features: str = ""
    """Bank of image features made by embed --side image_features; empty: made here where `augment` allows."""
    text_features: str = ""
    """Bank of text features made by embed --side text_features, or `compute` to make it here; empty: captions run
    through the text tower in every step."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Number format of features computed here."""
    init_from: str = ""
    """Saved model whose weights are the start, wherever names and shapes agree."""
    tokenizer: str = ""
    """Tokenizer's folder or hub name; empty: that of init_from or of the text tower, or learnt from the captions."""
    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the final model's weights."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of training data that lies at s3://."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        if not self.train.captions or not self.valid.captions:
            raise InputError("give train.captions and valid.captions, and the folders of their images.")
        if self.recipe == "dual_encoder" and "text" in (self.train.inputs, self.valid.inputs):
            raise InputError("inputs=text has captions without images: use it with recipe=text_pairs.")
        self._refuse_caching_of_what_changes()
        reads_images = self.recipe == "dual_encoder" and self.train.inputs == "images"
        if reads_images and self.model.image.kind == "regions" and not self.features:
            raise InputError(
                "model.image.kind=regions takes ready-made features: give train.inputs=regions or features."
            )

    def _refuse_caching_of_what_changes(self) -> None:
        caches = self.augment != "random_crop" or bool(self.features)
        if caches and self.model.image.trainable != "none":
            raise InputError(
                f"image features computed once need a frozen image tower, but model.image.trainable is "
                f"{self.model.image.trainable!r}: the features would change with every step. Use augment=random_crop "
                "without features, or model.image.trainable=none."
            )
        if self.text_features and (
            self.model.text.trainable or self.size_augment.words or self.recipe != "dual_encoder"
        ):
            raise InputError(
                "text features computed once need recipe=dual_encoder, a frozen text tower and whole captions: with "
                "model.text.trainable=true they change with every step, with size_augment.words in every epoch. Set "
                "model.text.trainable=false and size_augment.words=0, or leave text_features out."
            )
        if self.features and self.augment == "random_crop":
            raise InputError(
                "augment=random_crop cuts a new piece of every image in every epoch, so its features cannot be those "
                "of a bank. Use augment=none, or augment=flip for a bank with mirrored views."
            )

    @property
    def computes_features(self) -> bool:
        """Whether the run computes image features itself."""
        from_images = self.recipe == "dual_encoder" and self.train.inputs == "images"
        return from_images and self.augment != "random_crop" and not self.features


def plan(config: TrainXmatchConfig) -> Plan:
    """What the run will do, from the captions alone."""
    train, valid = read_splits(config)
    samples, unit = sample_count(config, train)
    steps = -(-samples // config.trainer.batch_size)
    rows = [
        ("recipe", config.recipe),
        ("training", size_of(train)),
        ("validation", size_of(valid)),
        ("images", _image_source(config)),
        ("loss", loss_words(config)),
        ("steps", f"{steps:,} x {config.trainer.epochs} epochs of {config.trainer.batch_size} {unit}"),
        ("workers", workers_of(config.trainer)),
    ]
    found = forecast_training(config, train)
    rows += [*bad_rows("training", train), *bad_rows("validation", valid)]
    return Plan(rows, found)


def loss_words(config: TrainXmatchConfig) -> str:
    """What is minimised, in words."""
    name = "info_nce" if config.recipe == "text_pairs" else config.loss.name
    sides = [f"{weight:g} {side}" for side, weight in config.side_losses.weights.items()]
    return " + ".join([f"{name}, {config.loss.negatives} negatives", *sides])


def read_splits(config: TrainXmatchConfig) -> tuple[CaptionSet, CaptionSet]:
    """The captions of both splits."""
    fetch = LocalCache(config.cache).hold
    return read_split(config.train, fetch), read_split(config.valid, fetch)


def forecast_training(config: TrainXmatchConfig, train: CaptionSet) -> Forecast | str:
    """Make features for some images, train for some steps, and scale both to the run; or why not."""
    if why_not := can_measure(config.ray):
        return why_not
    if config.trainer.use_gpu and not torch.cuda.is_available():
        return "not measured: the workers have GPUs, this machine has none"
    if config.text_features == "compute":
        return "not measured: features of the captions come first"
    samples, unit = sample_count(config, train)
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        images, part, bank = None, train, config.features
        if config.computes_features:
            bank = files.join(folder, "features")
            images, part = some_features(config, train, bank)
            if images is None or not part.captions:
                return TOO_LITTLE
        write_samples(part, files.join(folder, "data"), config.train)
        data = dict.fromkeys(("train", "valid"), files.join(folder, "data"))
        trainer = config.trainer
        trial = try_steps(
            recipe_of(config, data, (bank, config.text_features), build_tokenizer(config, train.captions)),
            trainer,
            config.optim,
            batch_size=-(-trainer.batch_size // trainer.workers),
            threads=trainer.cpus_per_worker,
            seconds=config.ray.calibration_s / 2,
            most=samples * trainer.epochs,
        )
    return training_forecast(trial, images, len(train.image_ids), samples * trainer.epochs, trainer, unit)


def some_features(config: TrainXmatchConfig, train: CaptionSet, bank: str) -> tuple[Sample | None, CaptionSet]:
    """Features of as many images as there is time for, written to `bank`; the captions of these images."""
    tables: list[pa.Table] = []
    step = ImageFeatures(
        config.model.image,
        views=("center", "flip") if config.augment == "flip" else ("center",),
        threads=max(1, int(config.ray.cpus_per_actor)),
        dtype=config.feature_dtype,
    )
    listing = image_listing(train.image_ids, train.image_paths)
    everything = Shard("forecast", "captions", 0, len(listing))
    sample = measure_step(
        step, lambda _: listing, [everything], lambda c: c["images"], config.ray.calibration_s / 2, tables.append
    )
    if not tables:
        return None, train
    table = pa.concat_tables(tables)
    write_vectors(files.join(bank, "part-00000.arrow"), table)
    names = pc.coalesce(table.column("group"), table.column("id"))
    return sample, train.of_images(set(names.to_pylist()))


def sample_count(config: TrainXmatchConfig, train: CaptionSet) -> tuple[int, str]:
    """Samples of an epoch, and what they are called."""
    pairs = config.recipe == "text_pairs"
    return (len(train.image_ids), "pairs of captions") if pairs else (len(train.captions), "captions")


def _image_source(config: TrainXmatchConfig) -> str:
    if config.recipe == "text_pairs":
        return "not used"
    if config.train.inputs == "regions":
        return "ready-made regions"
    if config.features:
        return f"features of {config.features}"
    return "decoded anew each epoch" if config.augment == "random_crop" else "features computed once"


def body(config: TrainXmatchConfig, run: Run) -> Report:
    """Samples to Arrow, features where the tower is frozen, epochs, and the best model."""
    data = {side: files.join(config.output, "data", side) for side in ("train", "valid")}
    train, valid = read_splits(config)
    write_samples(train, data["train"], config.train)
    write_samples(valid, data["valid"], config.valid)
    seen = seen_record(train, role="train" if config.recipe == "dual_encoder" else "text_pretraining")
    started, before = time.monotonic(), {row["epoch"] for row in read_history(config.output)}
    banks = image_features(config, run, [train, valid]), text_features(config, run, [train, valid])
    feature_seconds = time.monotonic() - started
    recipe = recipe_of(for_workers(config), data, banks, build_tokenizer(config, train.captions))
    with run.progress(config.trainer.epochs, "epochs") as progress:
        result = fit(recipe, config.trainer, config.optim, config.output, on_epoch=progress.figures)
    folder = files.join(config.output, "model")
    best = best_of(result)
    card = trained_card(config.model, training_words(config, train), best)
    publish_model(
        result.best_folder,
        folder,
        given=config.model,
        dtype=config.save_dtype,
        card=card,
        seen=seen,
        init_from=config.init_from,
    )
    rows = result_rows(folder, result, best)
    fact = training_fact(result.history, before, feature_seconds if config.computes_features else 0.0)
    return Report(rows, {"best": best, "history": result.history}, fact=fact)


def for_workers(config: TrainXmatchConfig) -> TrainXmatchConfig:
    """The same settings, with models where every worker can load them."""
    start = place_for_workers(config.init_from, "model", config.output) if config.init_from else ""
    return replace(config, model=model_for_workers(config.model, config.output), init_from=start)


def recipe_of(
    config: TrainXmatchConfig, data: Mapping[str, str], banks: tuple[str, str], tokenizer: PreTrainedTokenizerBase
) -> Callable[[], Recipe]:
    """What is trained, made anew in every worker.

    Args:
        config: of the run.
        data: folders of the samples, `train` and `valid`.
        banks: of image and of text features; "" where there are none.
        tokenizer: of the text tower.
    """
    return partial(
        RECIPES[config.recipe],
        RecipeConfig(
            model=config.model,
            loss=config.loss,
            side_losses=config.side_losses,
            augment=config.size_augment,
            groups=config.optim,
            gradient_checkpointing=config.trainer.gradient_checkpointing,
        ),
        tokenizer,
        RecipeData(
            train=data["train"],
            valid=data["valid"],
            features=banks[0],
            text_features=banks[1],
            init_from=config.init_from,
            cache=config.cache,
        ),
    )


def training_words(config: TrainXmatchConfig, train: CaptionSet) -> str:
    """Loss, length and data of a run, for the model's card."""
    return (
        f"loss `{config.loss.name}`, trained for {config.trainer.epochs} epochs on {size_of(train)} of "
        f"`{config.train.captions.rsplit('/', 1)[-1]}`, split `{config.train.split}`"
    )


def image_features(config: TrainXmatchConfig, run: Run, splits: Sequence[CaptionSet]) -> str:
    """The bank of the frozen image tower's features: the one given, or made here; empty where the tower runs."""
    if config.features:
        require_same_tower(config.features, config.model.image, "model.image")
    if not config.computes_features:
        return config.features
    with run.progress(len({i for split in splits for i in split.image_ids}), "images") as progress:
        return image_feature_bank(
            config.model.image,
            splits,
            files.join(config.output, "features"),
            has_flip=config.augment == "flip",
            dtype=config.feature_dtype,
            ray=config.ray,
            advance=progress.advance,
        )


def text_features(config: TrainXmatchConfig, run: Run, splits: Sequence[CaptionSet]) -> str:
    """The same of the frozen text tower."""
    if config.text_features != "compute":
        if config.text_features:
            require_same_tower(config.text_features, config.model.text, "model.text")
        return config.text_features
    if not config.model.text.name:
        raise InputError("text_features=compute needs a text tower with a name; one from scratch has learnt nothing.")
    with run.progress(sum(len(split.captions) for split in splits), "captions") as progress:
        return text_feature_bank(
            config.model.text,
            config.tokenizer or config.model.text.name,
            splits,
            files.join(config.output, "text_features"),
            dtype=config.feature_dtype,
            ray=config.ray,
            advance=progress.advance,
        )


def build_tokenizer(config: TrainXmatchConfig, captions: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the text tower: given, inherited, its own, or learnt from the training captions."""
    return starting_tokenizer(config.model.text, captions, tokenizer=config.tokenizer, init_from=config.init_from)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("train_xmatch", TrainXmatchConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
