"""Train so that parts, not only wholes, of texts and images belong together (AGREE, SelfAlign, MVPTR), on Ray Train."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from alignment.agree.losses import AgreeLossConfig
from alignment.agree.recipe import AgreeConfig, AgreeData, AgreeRecipe, require_data
from alignment.agree.slots import EntityConfig
from alignment.agree.survey import entities_of, survey
from alignment.mvptr.recipe_config import MvptrTrainConfig
from alignment.selfalign.config import SelfAlignConfig
from alignment.selfalign.recipe import SelfAlignRecipe, SelfAlignRecipeConfig
from jobs import _mvptr_training
from raydeploy.connect import RayConfig
from raydeploy.feature_bank import require_same_tower
from raydeploy.forecast import Forecast, can_measure
from raydeploy.run import Plan, Report, Run, run_job
from raydeploy.staging import model_for_workers, place_for_workers
from raydeploy.training import TrainerConfig, fit, read_history
from raydeploy.training_forecast import training_fact, training_forecast
from raydeploy.training_rows import bad_rows, best_of, result_rows, size_of, workers_of
from xmatch.data import files
from xmatch.data.augment import SizeAugmentConfig
from xmatch.data.captions import CaptionSet
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.training.dual_encoder_recipe import RecipeConfig, RecipeData
from xmatch.training.initial_weights import starting_tokenizer
from xmatch.training.leakage import seen_record
from xmatch.training.objectives import LossConfig
from xmatch.training.optim import OptimConfig
from xmatch.training.recipe import Recipe
from xmatch.training.samples import CaptionsConfig, read_split, write_samples
from xmatch.training.side_losses import SideLossConfig
from xmatch.training.trained_model import publish_model, trained_card
from xmatch.training.trial import try_steps


@dataclass(frozen=True, kw_only=True)
class TrainAlignmentConfig:
    """Settings of one training."""

    output: str
    """Folder or s3:// prefix for the model, its checkpoints and the record of the run."""
    method: Literal["agree", "selfalign", "mvptr"] = "agree"
    """`agree`: fine-tune on entities, with `losses` and `entity`. `selfalign`: align regions with words, with `loss`,
    `side_losses` and `selfalign`. `mvptr`: pre-train or fine-tune an MVPTR, with `mvptr`, init_from, optim and trainer
    alone. What is of another method is not looked at."""
    train: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captioned images to learn from."""
    valid: CaptionsConfig = field(default_factory=lambda: CaptionsConfig(split="val"))
    """Captioned images that choose the best epoch; never learnt from."""
    entities: str = ""
    """Entities of the training captions: output or table of jobs/extract_entities.py, by caption id."""
    boxes: str = ""
    """Boxes by image id: of entities in the captioned images (source `grounding`) and of objects in other images
    (source `visual_genome`); output or table of jobs/extract_entities.py."""
    object_photos: str = ""
    """Folders of the other images, named by their ids, joined by commas."""
    init_from: str = ""
    """Saved model to start from: a folder, URI or hub name; empty: from scratch."""
    model: DualEncoderConfig | None = None
    """Null: the model of init_from as it is (AGREE). Else towers, heads and poolings, which take over the weights of
    init_from wherever names and shapes agree."""
    losses: AgreeLossConfig = field(default_factory=AgreeLossConfig)
    """AGREE: what is minimised."""
    entity: EntityConfig = field(default_factory=EntityConfig)
    """AGREE: which entities take part."""
    loss: LossConfig = field(default_factory=lambda: LossConfig(name="hardest_triplet", margin=0.2))
    """SelfAlign: the matching loss."""
    side_losses: SideLossConfig = field(default_factory=SideLossConfig)
    """SelfAlign: losses of the host beside the matching one."""
    selfalign: SelfAlignConfig = field(default_factory=SelfAlignConfig)
    """SelfAlign: what is minimised beside it."""
    size_augment: SizeAugmentConfig = field(default_factory=SizeAugmentConfig)
    """SelfAlign: how many words, regions and grid cells are dropped."""
    mvptr: MvptrTrainConfig = field(default_factory=MvptrTrainConfig)
    """MVPTR: task, data, sizes and losses."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="adamw",
            lr=1e-5,
            weight_decay=0.1,
            decay="by_name",
            schedule="cosine",
            warmup_share=0.05,
            clip_norm=float("inf"),
            betas=(0.9, 0.98),
            eps=1e-6,
            limits={"logit_scale": (0.0, 4.6052)},
        )
    )
    """Optimizer and schedule; AGREE's, with a shorter warm-up."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length, workers, steps and checkpoints."""
    augment: Literal["none", "random_crop"] = "none"
    """`random_crop`: cut and mirror decoded images anew each epoch, painted ones like the whole; AGREE does not."""
    features: str = ""
    """Bank of image features made by embed --side image_features, for a frozen image tower and losses without paint."""
    tokenizer: str = ""
    """Tokenizer's folder or hub name, where `model` is given; empty: that of init_from or of the text tower."""
    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the final model's weights."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of training data that lies at s3://."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where it runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything starts."""
        if self.method == "mvptr":
            _mvptr_training.check(self)
            return
        if not self.train.captions or not self.valid.captions:
            raise InputError("give train.captions and valid.captions, and the folders of their images.")
        if "text" in (self.train.inputs, self.valid.inputs):
            raise InputError("inputs=text has captions without images; aligning entities with images needs both.")
        if self.features and self.augment == "random_crop":
            raise InputError("augment=random_crop cuts images anew in every epoch; leave it out, or features.")
        METHODS[self.method].check(self)

    @property
    def data(self) -> AgreeData:
        """Entities and boxes."""
        return AgreeData(entities=self.entities, boxes=self.boxes, object_photos=self.object_photos)

    @property
    def has_pixels(self) -> bool:
        """Whether images are decoded."""
        return self.train.inputs == "images" and not self.features


def plan(config: TrainAlignmentConfig) -> Plan:
    """What the run will do, from captions, entities and boxes alone."""
    if config.method == "mvptr":
        return _mvptr_training.plan(config)
    model = model_config(config)
    train, valid = read_splits(config)
    steps = -(-len(train.captions) // config.trainer.batch_size)
    rows = [
        ("training", size_of(train)),
        ("validation", size_of(valid)),
        ("start", config.init_from or "anew"),
        ("images", _image_source(config, model)),
        ("losses", METHODS[config.method].losses(config)),
        *METHODS[config.method].survey(config, train),
        ("steps", f"{steps:,} x {config.trainer.epochs} epochs of {config.trainer.batch_size} captions"),
        *_warm_up(config.optim, steps * config.trainer.epochs),
        ("workers", workers_of(config.trainer)),
    ]
    found = forecast_training(config, model, train)
    rows += [*bad_rows("training", train), *bad_rows("validation", valid)]
    return Plan(rows, found)


def read_splits(config: TrainAlignmentConfig) -> tuple[CaptionSet, CaptionSet]:
    """The captions of both splits."""
    fetch = LocalCache(config.cache).hold
    return read_split(config.train, fetch), read_split(config.valid, fetch)


def model_config(config: TrainAlignmentConfig) -> DualEncoderConfig:
    """Towers, heads and poolings of what is trained.

    Raises:
        InputError: the model of init_from cannot be read, or features are given for a tower that learns.
    """
    model = config.model or checkpoints.read_config(checkpoints.resolve(config.init_from), DualEncoderConfig)
    if config.features and model.image.trainable != "none":
        raise InputError(
            f"image features computed once need a frozen image tower, but image.trainable is {model.image.trainable!r}."
            " Leave features out, or give model with image.trainable=none."
        )
    if config.features:
        require_same_tower(config.features, model.image, "model.image", is_saved=config.model is None)
    if config.has_pixels and model.image.kind == "regions":
        raise InputError("this model takes ready-made features: give train.inputs=regions or features.")
    return model


def _image_source(config: TrainAlignmentConfig, model: DualEncoderConfig) -> str:
    if config.train.inputs == "regions":
        return "ready-made regions"
    if config.features:
        return f"features of {config.features}"
    return f"decoded, {'cropped at random' if config.augment == 'random_crop' else 'whole'}; tower {model.image.name}"


def _warm_up(optim: OptimConfig, steps: int) -> list[tuple[str, str]]:
    if optim.warmup_steps < steps or not optim.warmup_steps:
        return []
    reached = f"{steps / optim.warmup_steps:.0%}"
    return [("warm-up", f"optim.warmup_steps is {optim.warmup_steps:,}: the rate rises to {reached} of optim.lr alone")]


def forecast_training(config: TrainAlignmentConfig, model: DualEncoderConfig, train: CaptionSet) -> Forecast | str:
    """Train for some steps and scale them to the run; or why not."""
    if why_not := can_measure(config.ray):
        return why_not
    if config.trainer.use_gpu and not torch.cuda.is_available():
        return "not measured: the workers have GPUs, this machine has none"
    trainer, samples = config.trainer, len(train.captions) * config.trainer.epochs
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        write_samples(train, files.join(folder, "data"), config.train)
        data = dict.fromkeys(("train", "valid"), files.join(folder, "data"))
        trial = try_steps(
            recipe_of(config, model, data, config.init_from, build_tokenizer(config, train.captions)),
            trainer,
            config.optim,
            batch_size=-(-trainer.batch_size // trainer.workers),
            threads=trainer.cpus_per_worker,
            seconds=config.ray.calibration_s,
            most=samples,
        )
    return training_forecast(trial, None, 0, samples, trainer, "captions")


def body(config: TrainAlignmentConfig, run: Run) -> Report:
    """Samples to Arrow, epochs, and the best model."""
    if config.method == "mvptr":
        return _mvptr_training.body(config, run)
    model = model_config(config)
    data = {side: files.join(config.output, "data", side) for side in ("train", "valid")}
    train, valid = read_splits(config)
    write_samples(train, data["train"], config.train)
    write_samples(valid, data["valid"], config.valid)
    before = {row["epoch"] for row in read_history(config.output)}
    start = place_for_workers(config.init_from, "model", config.output) if config.init_from else ""
    placed = model if config.model is None else model_for_workers(model, config.output)
    recipe = recipe_of(config, placed, data, start, build_tokenizer(config, train.captions))
    with run.progress(config.trainer.epochs, "epochs") as progress:
        result = fit(recipe, config.trainer, config.optim, config.output, on_epoch=progress.figures)
    folder, best = files.join(config.output, "model"), best_of(result)
    publish_model(
        result.best_folder,
        folder,
        given=model,
        dtype=config.save_dtype,
        card=trained_card(model, _training_words(config, train), best),
        seen=seen_record(train, role="train"),
        init_from=config.init_from,
    )
    last = result.history[-1]
    rows = result_rows(folder, result, best)
    rows += [(f"last {name}", f"{last[name]:.4g}") for name in ("loss", *loss_names(last))]
    values = {"best": best, "history": result.history, **METHODS[config.method].values(config, train)}
    return Report(rows, values, fact=training_fact(result.history, before, 0.0))


def loss_names(figures: Mapping[str, Any]) -> list[str]:
    """The names of the losses in the figures of an epoch."""
    return [name for name in figures if name.startswith("loss_")]


def _training_words(config: TrainAlignmentConfig, train: CaptionSet) -> str:
    start, method = config.init_from.rstrip("/").rsplit("/", 1)[-1], METHODS[config.method]
    return (
        f"{f'fine-tuned from `{start}`' if start else 'trained from scratch'} with the losses {method.losses(config)} "
        f"({method.name}) for {config.trainer.epochs} epochs on {size_of(train)} of "
        f"`{config.train.captions.rsplit('/', 1)[-1]}`, split `{config.train.split}`"
    )


def recipe_of(
    config: TrainAlignmentConfig,
    model: DualEncoderConfig,
    data: Mapping[str, str],
    start: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[], Recipe]:
    """What is trained, made anew in every worker.

    Args:
        config: of the run.
        model: of what is trained.
        data: folders of the samples, `train` and `valid`.
        start: init_from as workers load it.
        tokenizer: of the text tower.
    """
    matching = RecipeConfig(
        model=model,
        loss=config.loss,
        side_losses=config.side_losses,
        augment=config.size_augment,
        groups=config.optim,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        crops=config.augment == "random_crop",
    )
    samples = RecipeData(
        train=data["train"], valid=data["valid"], features=config.features, init_from=start, cache=config.cache
    )
    return METHODS[config.method].recipe(config, matching, tokenizer, samples)


def build_tokenizer(config: TrainAlignmentConfig, captions: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the text tower."""
    if config.model is None:
        return checkpoints.read_tokenizer(checkpoints.resolve(config.init_from))
    return starting_tokenizer(config.model.text, captions, tokenizer=config.tokenizer, init_from=config.init_from)


class Method(NamedTuple):
    """A way to align: its name, and what of a run depends on it."""

    name: str
    check: Callable[[TrainAlignmentConfig], None]
    losses: Callable[[TrainAlignmentConfig], str]
    survey: Callable[[TrainAlignmentConfig, CaptionSet], list[tuple[str, str]]]
    values: Callable[[TrainAlignmentConfig, CaptionSet], dict[str, Any]]
    recipe: Callable[[TrainAlignmentConfig, RecipeConfig, PreTrainedTokenizerBase, RecipeData], Callable[[], Recipe]]


def _check_agree(config: TrainAlignmentConfig) -> None:
    if config.model is None and not config.init_from:
        raise InputError("give init_from, the model to fine-tune, or model to make one anew.")
    if config.model is None and config.tokenizer:
        raise InputError("the model of init_from brings its own tokenizer; give tokenizer only with model.")
    require_data(config.losses, config.entity, config.data, has_pixels=config.has_pixels)


def _agree_values(config: TrainAlignmentConfig, train: CaptionSet) -> dict[str, Any]:
    chosen = entities_of(train, config.data, config.entity, config.losses)
    return {"entities": asdict(chosen.counts) if chosen else None}


def _agree_recipe(
    config: TrainAlignmentConfig, matching: RecipeConfig, tokenizer: PreTrainedTokenizerBase, samples: RecipeData
) -> Callable[[], Recipe]:
    matching = replace(matching, augment=SizeAugmentConfig(), side_losses=SideLossConfig())
    settings = AgreeConfig(matching=matching, losses=config.losses, entity=config.entity, as_saved=config.model is None)
    return partial(AgreeRecipe, settings, tokenizer, samples, config.data)


def _check_selfalign(config: TrainAlignmentConfig) -> None:
    if config.model is None:
        raise InputError("method=selfalign trains host and alignment together: give model, or a preset that has one.")
    if config.entities or config.boxes or config.object_photos:
        raise InputError("entities, boxes and object_photos belong to method=agree; leave them out.")


def _selfalign_losses(config: TrainAlignmentConfig) -> str:
    weights = {config.loss.name: 1.0, **config.side_losses.weights, **config.selfalign.weights}
    return ", ".join(f"{weight:g} {name}" for name, weight in weights.items())


METHODS = {
    "agree": Method(
        "AGREE",
        _check_agree,
        lambda config: ", ".join(f"{config.losses.weight(name):g} {name}" for name in config.losses.active),
        lambda config, train: survey(train, config.data, config.entity, config.losses),
        _agree_values,
        _agree_recipe,
    ),
    "selfalign": Method(
        "SelfAlign",
        _check_selfalign,
        _selfalign_losses,
        lambda config, train: [],
        lambda config, train: {},
        lambda config, matching, tokenizer, samples: partial(
            SelfAlignRecipe,
            SelfAlignRecipeConfig(matching=matching, selfalign=config.selfalign),
            tokenizer,
            samples,
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit code."""
    return run_job("train_alignment", TrainAlignmentConfig, plan=plan, body=body, description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
