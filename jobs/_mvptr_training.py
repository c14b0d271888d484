"""What `train_alignment.py --method mvptr` does: it trains no dual encoder, so its plan and its body are its own."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import torch

from alignment.mvptr import checkpoints as mvptr_checkpoints
from alignment.mvptr.answer_swap import AnswerSwap
from alignment.mvptr.recipe_base import MvptrData
from alignment.mvptr.recipe_choice import recipe_class
from alignment.mvptr.recipe_config import MATCHING, MvptrTrainConfig, SizesConfig
from alignment.mvptr.recipe_data import Start, captions_of, places, read_side, start_of
from alignment.mvptr.recipe_start import ANSWERS_FILE
from alignment.mvptr.region_banks import RegionBanks
from alignment.mvptr.tasks.samples import write_samples
from raydeploy.connect import RayConfig
from raydeploy.forecast import Forecast, can_measure
from raydeploy.run import Plan, Report, Run
from raydeploy.staging import place_for_workers
from raydeploy.training import TrainerConfig, fit, read_history
from raydeploy.training_forecast import training_fact, training_forecast
from raydeploy.training_rows import best_of, workers_of
from xmatch.data import files
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.errors import InputError
from xmatch.models.staging import local_folder
from xmatch.training.leakage import SEEN_FILE, seen_record, write_seen
from xmatch.training.optim import OptimConfig
from xmatch.training.recipe import Recipe
from xmatch.training.trained_model import earlier_seen
from xmatch.training.trial import try_steps


class MvptrJob(Protocol):
    """What of the job's configuration is looked at."""

    @property
    def output(self) -> str: ...
    @property
    def init_from(self) -> str: ...
    @property
    def mvptr(self) -> MvptrTrainConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def cache(self) -> CacheConfig: ...
    @property
    def save_dtype(self) -> Literal["float32", "float16"]: ...
    @property
    def ray(self) -> RayConfig: ...


class Prepared(NamedTuple):
    """Vocabularies and samples, read once."""

    start: Start
    train: pa.Table
    valid: pa.Table


def check(config: MvptrJob) -> None:
    """Refuse what cannot work before anything starts.

    Raises:
        InputError: says what is missing or does not go together.
    """
    mvptr, trainer = config.mvptr, config.trainer
    mvptr.require_data()
    if config.init_from and (mvptr.bert or mvptr.model != SizesConfig() or mvptr.tokenizer or mvptr.id2phrase):
        raise InputError(
            "the model of init_from brings its sizes, tokenizer and phrases; leave mvptr.bert, .model, .tokenizer and "
            ".id2phrase out, or init_from."
        )
    if mvptr.task not in MATCHING and not trainer.select_by.startswith("accuracy"):
        raise InputError(f"mvptr.task={mvptr.task} is chosen by accuracy: give trainer.select_by=accuracy.")
    if trainer.select_by.startswith("fine_") and mvptr.valid_pools is None:
        raise InputError(f"trainer.select_by is {trainer.select_by!r}, so give mvptr.valid_pools, too.")
    if trainer.gradient_checkpointing:
        raise InputError("an MVPTR does not checkpoint its gradients; save memory with trainer.cached_rows.")


def prepare(config: MvptrJob) -> Prepared:
    """Read vocabularies and samples, and check that every image has regions.

    Raises:
        InputError: a file is broken, or files do not fit each other; names file and row.
    """
    regions = RegionBanks(places(config.mvptr.regions), fetch=LocalCache(config.cache).hold)
    start = start_of(config.mvptr, config.init_from, regions.width)
    found = Prepared(start, read_side(config.mvptr, "train", start), read_side(config.mvptr, "valid", start))
    for side, table in (("mvptr.train", found.train), ("mvptr.valid", found.valid)):
        regions.names_of(table.column("image_id").to_pylist(), side)
    if "qa" in config.mvptr.losses.active and config.mvptr.task == "pretrain":
        AnswerSwap(found.train.column("answer"), "mvptr.train")
    return found


def plan(config: MvptrJob) -> Plan:
    """What the run will do, from samples and vocabularies."""
    prepared, mvptr, trainer = prepare(config), config.mvptr, config.trainer
    steps = -(-len(prepared.train) // trainer.batch_size)
    sizes, phrases = prepared.start.config, prepared.start.phrases
    lengths = dataclasses.asdict(sizes.lengths)
    rows = [
        ("task", mvptr.task),
        ("training", size_of(prepared.train)),
        ("validation", size_of(prepared.valid)),
        ("start", config.init_from or mvptr.bert or "anew"),
        ("model", f"{sizes.num_layers} layers, width {sizes.hidden_size}, {sizes.vocab_size:,} rows of embeddings"),
        ("lengths", ", ".join(f"{name} {value}" for name, value in lengths.items())),
        ("phrases", f"{len(phrases):,}" if phrases else "none"),
        ("losses", losses_text(mvptr)),
        ("steps", f"{steps:,} x {trainer.epochs} epochs of {trainer.batch_size} samples"),
        ("workers", workers_of(trainer)),
    ]
    return Plan(rows, forecast(config, prepared))


def size_of(samples: pa.Table) -> str:
    """How many samples and images a split has."""
    images = len(set(samples.column("image_id").to_pylist()))
    return f"{len(samples):,} samples of {images:,} images"


def losses_text(mvptr: MvptrTrainConfig) -> str:
    """What is minimised, for a person."""
    if mvptr.task in MATCHING:
        stages = f", {mvptr.schedule}" if mvptr.task == "pretrain" else ""
        return ", ".join(f"{mvptr.losses.weight(name):g} {name}" for name in mvptr.losses.active) + stages
    if mvptr.is_weak:
        return f"{mvptr.head.region_score}, without boxes, {mvptr.weak.margin:g} above {mvptr.weak.negatives}"
    return {"vqa": mvptr.answer_loss, "snli_ve": "cross-entropy"}.get(mvptr.task, mvptr.head.region_score)


def forecast(config: MvptrJob, prepared: Prepared) -> Forecast | str:
    """Train for some steps and scale them to the run; or why not."""
    if why_not := can_measure(config.ray):
        return why_not
    trainer = config.trainer
    if trainer.use_gpu and not torch.cuda.is_available():
        return "not measured: the workers have GPUs, this machine has none"
    samples = len(prepared.train) * trainer.epochs
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        data = write_data(prepared, folder, config, config.init_from)
        trial = try_steps(
            recipe_factory(config, config.mvptr, prepared.start, data),
            trainer,
            config.optim,
            batch_size=-(-trainer.batch_size // trainer.workers),
            threads=trainer.cpus_per_worker,
            seconds=config.ray.calibration_s,
            most=samples,
        )
    return training_forecast(trial, None, 0, samples, trainer, "samples")


def write_data(prepared: Prepared, folder: str, config: MvptrJob, start: str) -> MvptrData:
    """Write both splits' samples as workers read them."""
    paths = {side: files.join(folder, f"{side}.arrow") for side in ("train", "valid")}
    write_samples(paths["train"], prepared.train)
    write_samples(paths["valid"], prepared.valid)
    return MvptrData(train=paths["train"], valid=paths["valid"], init_from=start, cache=config.cache)


def recipe_factory(config: MvptrJob, mvptr: MvptrTrainConfig, start: Start, data: MvptrData) -> Callable[[], Recipe]:
    """What is trained, made anew in every worker, from settings named as workers read them."""
    return partial(recipe_class(mvptr), mvptr, start, config.optim, data, config.trainer.precision)


def body(config: MvptrJob, run: Run) -> Report:
    """Samples to Arrow, epochs, and the best model."""
    prepared, mvptr = prepare(config), config.mvptr
    start = place_for_workers(config.init_from, "model", config.output) if config.init_from else ""
    data = write_data(prepared, files.join(config.output, "data"), config, start)
    if mvptr.bert and not config.init_from:
        mvptr = dataclasses.replace(mvptr, bert=place_for_workers(mvptr.bert, "model", config.output))
    before = {row["epoch"] for row in read_history(config.output)}
    factory = recipe_factory(config, mvptr, prepared.start, data)
    with run.progress(config.trainer.epochs, "epochs") as progress:
        result = fit(factory, config.trainer, config.optim, config.output, on_epoch=progress.figures)
    best, folder = best_of(result), files.join(config.output, "model")
    publish(result.best_folder, folder, config, card(config, prepared, best))
    write_seen(
        [seen_record(captions_of(prepared.train), role="train"), *earlier_seen(config.init_from)],
        files.join(folder, SEEN_FILE),
    )
    last = result.history[-1]
    rows = [("model", folder), ("best epoch", str(result.best_epoch)), ("samples/s", f"{result.samples_per_s:,.0f}")]
    rows += [(name, f"{value:.2f}") for name, value in figures_of(best).items()]
    rows += [(f"last {name}", f"{last[name]:.4g}") for name in last if name.startswith("loss")]
    return Report(rows, {"best": best, "history": result.history}, fact=training_fact(result.history, before, 0.0))


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The validation figures of an epoch."""
    known = ("recall", "accuracy", "rsum")
    return {name: value for name, value in row.items() if any(part in name for part in known)}


def publish(best_folder: str, folder: str, config: MvptrJob, text: str) -> None:
    """Write the best epoch's model with its card, and its answers where it has any."""
    local = local_folder(best_folder, "model")
    mvptr_checkpoints.save(folder, mvptr_checkpoints.load(local), config.save_dtype, text)
    answers = os.path.join(local, ANSWERS_FILE)
    if os.path.exists(answers):
        files.write_bytes(files.join(folder, ANSWERS_FILE), files.read_bytes(answers))


def card(config: MvptrJob, prepared: Prepared, best: Mapping[str, Any]) -> str:
    """README.md of the model."""
    sizes = prepared.start.config
    rows = "".join(f"| {name} | {value:.2f} |\n" for name, value in figures_of(best).items())
    begun = config.init_from.rstrip("/").rsplit("/", 1)[-1] or config.mvptr.bert or "random weights"
    return (
        "---\nlibrary_name: vokenray\ntags: [image-text-retrieval]\n---\n# MVPTR\n\n"
        f"{sizes.num_layers} layers of width {sizes.hidden_size}, regions of {sizes.region_width} numbers; for "
        f"{config.mvptr.task} from `{begun}`, {config.trainer.epochs} epochs on {size_of(prepared.train)}, losses "
        f"{losses_text(config.mvptr)}. What it saw is listed in `{SEEN_FILE}`.\n\n"
        f"Best epoch {best['epoch']}, validation:\n\n| figure | value |\n|---|---|\n{rows}\n"
        "```python\nfrom alignment.mvptr import checkpoints\nsaved = checkpoints.load(FOLDER)\n```\n"
    )
