"""A recipe under Ray Train: workers, checkpoints, resume, and a record of the run.

Randomness is a function of (seed, epoch, sample), never of what happened before or of the worker, so a run that is
killed and started again, or has more workers, follows the curve of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.train as ray_train
import ray.train.torch as ray_torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from torch import nn

from raydeploy.elastic import ElasticTrainer
from raydeploy.run_folder import METRICS_FILE, RunFolder, require_wandb
from raydeploy.streams import find_input_error
from xmatch.data import files
from xmatch.data.epoch_order import epoch_indices
from xmatch.errors import InputError
from xmatch.training.optim import OptimConfig, build_optimizer, clip_gradients, keep_within, set_rates
from xmatch.training.recipe import Recipe, Rows, SampleKey
from xmatch.training.step import StepConfig, Stepper
from xmatch.training.watch import check_progress

RUN_NAME = "checkpoints"
LOW_MEMORY = "running low on memory"
"""In the text of Ray's error when it has killed workers to save their node; its type depends on which it killed."""
VALID = "valid_row"
"""Name, in a batch, of the (b,) bool tensor that is false for rows that only fill a worker's share up."""
SAMPLES = "sample_number"
"""Name, in a batch, of the (b,) int64 tensor of the samples' own numbers."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(StepConfig):
    """How long, on how many workers, how a step is computed, and how often a checkpoint is written."""

    epochs: int = 20
    """Passes over the training captions."""
    batch_size: int = 256
    """Captions per step over all workers together."""
    workers: int = 1
    """Training processes."""
    min_workers: int = 0
    """Fewest that train on while nodes are missing; more join when these are back. 0: all, or the run waits."""
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    """Workers on few nodes, on many, or each on a node of its own."""
    cpus_per_worker: int = 1
    """CPU cores (and torch threads) of each worker."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    seed: int = 9595
    """Seed of order, dropout, augmentation and starting weights."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints within an epoch; 0: only at the end of each epoch."""
    select_by: str = "rsum"
    """Validation figure that chooses the best model (higher is better); `epoch`: the last one is taken."""
    evaluate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    max_failures: int = 3
    """Worker losses survived before the run fails."""
    stop_after_epochs: int | None = None
    """Stop early after so many epochs of this run; the schedule still reckons with all, and a rerun goes on."""
    loader_threads: int = 0
    """Processes per worker that prepare batches ahead; 0 prepares them in the worker itself."""
    wandb_project: str = ""
    """Weights & Biases project that gets the figures too; needs `pip install wandb`."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        super().__post_init__()
        if min(self.epochs, self.batch_size, self.workers, self.cpus_per_worker, self.evaluate_every) < 1:
            raise InputError(
                "trainer: epochs, batch_size, workers, cpus_per_worker and evaluate_every must be at least 1."
            )
        if not 0 <= self.min_workers <= self.workers:
            raise InputError(f"trainer.min_workers is {self.min_workers}; expected 0 to workers, {self.workers}.")
        if self.wandb_project:
            require_wandb()


@dataclass
class Position:
    """Where a run stands: what a checkpoint says beside weights and optimizer."""

    epoch: int = 0
    samples_done: int = 0
    step: int = 0
    best: float = float("-inf")
    best_epoch: int = -1
    loss_sum: float = 0.0
    loss_count: int = 0
    part_sums: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its best model's folder, the figures of every epoch, and the rate."""

    best_folder: str
    best_epoch: int
    history: list[dict[str, Any]]
    samples_per_s: float


@dataclass(frozen=True)
class _Loop:
    """What one worker's loop works with."""

    recipe: Recipe
    config: TrainerConfig
    optim: OptimConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    position: Position
    folder: RunFolder | None
    """Of the first worker only."""
    rank: int
    world: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.recipe.num_samples // self.config.batch_size)


class _Batches(torch.utils.data.Dataset[Rows]):
    """The batches of one epoch, by step, for a loader that may prepare them in other processes."""

    def __init__(self, recipe: Recipe, steps: np.ndarray, key: SampleKey) -> None:
        self.recipe, self.steps, self.key = recipe, steps, key

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Rows:
        indices = self.steps[step]
        real = indices[indices >= 0]
        samples = real if len(real) else np.zeros(1, np.int64)
        batch = {**self.recipe.batch(samples, self.key), SAMPLES: torch.from_numpy(samples)}
        valid = torch.from_numpy(np.arange(len(indices)) < len(real))
        return {**{name: _fill_up(rows, len(indices)) for name, rows in batch.items()}, VALID: valid}


def _fill_up(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows (count, ...) of rows (n, ...): the given ones, and the last of them again where there are fewer."""
    missing = count - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def fit(
    recipe_factory: Callable[[], Recipe],
    config: TrainerConfig,
    optim: OptimConfig,
    output: str,
    *,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> TrainResult:
    """Train a recipe to its last epoch, continuing from the latest checkpoint in `output` if there is one.

    Args:
        recipe_factory: makes the recipe in each worker; picklable.
        config: length, workers, steps and checkpoints.
        optim: optimizer and schedule.
        output: a folder or s3:// prefix that every worker can reach.
        on_epoch: called on the driver with each epoch's figures.

    Raises:
        InputError: a worker found bad input or settings, or the run diverged.
    """
    output = output if files.is_uri(output) else os.path.abspath(output)
    loop_config = {"factory": recipe_factory, "trainer": config, "optim": optim, "output": output}
    resources = {"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})}
    trainer = ElasticTrainer(
        _worker_loop,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker=resources,
            placement_strategy=config.placement.upper(),
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _following(files.join(output, METRICS_FILE), on_epoch):
        raise_ours(trainer.fit)
    history = read_history(output)
    best = max((row for row in history if config.select_by in row), key=lambda r: (r[config.select_by], -r["epoch"]))
    return TrainResult(
        best_folder=files.join(output, "best"),
        best_epoch=best["epoch"],
        history=history,
        samples_per_s=sum(r["samples"] for r in history) / max(1e-9, sum(r["seconds"] for r in history)),
    )


def read_history(output: str) -> list[dict[str, Any]]:
    """The figures of every epoch of a run, in order; an epoch that ran twice counts as it ran last."""
    rows = [json.loads(line) for line in _lines(files.join(output, METRICS_FILE))]
    return [row for _, row in sorted({row["epoch"]: row for row in rows}.items())]


def _lines(path: str) -> list[str]:
    """The whole lines of a text file that may still be growing; none where it is not there."""
    return files.read_text(path).split("\n")[:-1] if files.exists(path) else []


def raise_ours(fit_once: Callable[[], Any]) -> None:
    """Run Ray's fit; an InputError that a worker raised comes home as one, and a want of memory is told as such."""
    try:
        fit_once()
    except Exception as error:
        workers = (getattr(error, "worker_failures", None) or {}).values()
        failures = [error, *workers, getattr(error, "controller_failure", None)]
        for failure in failures:
            ours = find_input_error(failure)
            if ours is not None:
                raise InputError(str(ours)) from error
        killed = next((one for one in failures if one is not None and LOW_MEMORY in str(one)), None)
        if killed is not None:
            said = next(line for line in str(killed).splitlines() if LOW_MEMORY in line)
            raise InputError(
                f"{said}. Whatever ran beside the workers counts too. Run the same command again to go on from the "
                "last checkpoint, with more memory free, or make steps smaller: trainer.batch_size, "
                "trainer.cached_rows, trainer.gradient_checkpointing."
            ) from error
        raise


@contextmanager
def _following(path: str, on_epoch: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Hand every epoch's line to the driver while the workers write it."""
    stop = threading.Event()
    seen = len(_lines(path))

    def drain(start: int) -> int:
        lines = _lines(path)
        for line in lines[start:]:
            on_epoch(json.loads(line))
        return max(start, len(lines))

    def follow() -> None:
        count = seen
        while not stop.wait(2.0 if files.is_uri(path) else 0.5):
            count = drain(count)
        drain(count)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _worker_loop(settings: dict[str, Any]) -> None:
    """What each training worker runs."""
    loop = _set_up(settings)
    config, position = loop.config, loop.position
    last = min(config.epochs, position.epoch + (config.stop_after_epochs or config.epochs))
    for epoch in range(position.epoch, last):
        started, samples_before = time.monotonic(), position.samples_done
        for batch in _epoch(loop):
            _step(loop, batch)
            position.samples_done = min(loop.recipe.num_samples, position.samples_done + config.batch_size)
            every = config.checkpoint_every_steps
            if every and position.step % every == 0 and position.samples_done < loop.recipe.num_samples:
                _report(loop, {"epoch": epoch})
        seconds, samples = time.monotonic() - started, loop.recipe.num_samples - samples_before
        figures: dict[str, Any] = {"epoch": epoch, "loss": position.loss_sum / max(1, position.loss_count)}
        figures |= {f"loss_{name}": value / max(1, position.loss_count) for name, value in position.part_sums.items()}
        if loop.folder is not None:
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
                loop.model.eval()
                figures |= loop.recipe.evaluate(loop.model)
                loop.model.train()
            figures |= {"seconds": seconds, "samples": samples, "samples_per_s": samples / max(1e-9, seconds)}
            _keep_best(loop, figures)
            check_progress(loop.folder.record(figures, config.select_by), config.select_by, chance=1.0)
        position.epoch, position.samples_done, position.loss_sum, position.loss_count = epoch + 1, 0, 0.0, 0
        position.part_sums = {}
        _report(loop, figures)


def _set_up(settings: dict[str, Any]) -> _Loop:
    """Recipe, model and optimizer of one worker, as the latest checkpoint left them."""
    config: TrainerConfig = settings["trainer"]
    torch.set_num_threads(config.cpus_per_worker)
    context = ray_train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    recipe: Recipe = settings["factory"]()
    model = ray_torch.prepare_model(recipe.build_model(), parallel_strategy=None)
    optimizer = build_optimizer(recipe.parameter_groups(model), settings["optim"])
    stepper = Stepper(recipe, model, config)
    position = _restore(recipe, model, optimizer, stepper)
    folder = RunFolder(settings["output"], config.wandb_project) if rank == 0 else None
    return _Loop(recipe, config, settings["optim"], model, optimizer, stepper, position, folder, rank, world)


def _epoch(loop: _Loop) -> Iterator[Rows]:
    """The remaining batches of the current epoch for this worker."""
    config, position = loop.config, loop.position
    steps = epoch_indices(
        loop.recipe.num_samples,
        seed=config.seed,
        epoch=position.epoch,
        worker_rank=loop.rank,
        world_size=loop.world,
        batch_size=config.batch_size,
        position=position.samples_done,
    )
    batches = _Batches(loop.recipe, steps, SampleKey(config.seed, position.epoch))
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=config.loader_threads, pin_memory=config.use_gpu
    )
    yield from loader


def _step(loop: _Loop, batch: Rows) -> None:
    """One optimizer step; dropout is drawn from (seed, epoch, sample)."""
    position, config, optim, scaler = loop.position, loop.config, loop.optim, loop.stepper.scaler
    set_rates(loop.optimizer, optim, position.step, loop.steps_per_epoch, config.epochs)
    ramp = (position.step % loop.steps_per_epoch) / loop.steps_per_epoch
    loop.optimizer.zero_grad(set_to_none=True)
    rows = {name: tensor.to(loop.stepper.device, non_blocking=True) for name, tensor in batch.items()}
    outcome = loop.stepper.backward(
        {name: tensor for name, tensor in rows.items() if name not in (VALID, SAMPLES)},
        rows[VALID],
        samples=rows[SAMPLES],
        epoch=position.epoch,
        seed=hash((config.seed, position.epoch)) & 0x7FFFFFFF,
        factor=ramp if position.epoch == optim.loss_ramp_epoch else 1.0,
    )
    loss = float(outcome.loss)
    loop.stepper.watch(loss, outcome, position.step)
    scaler.unscale_(loop.optimizer)
    clip_gradients(loop.model, loop.optimizer, optim, position.epoch)
    scaler.step(loop.optimizer)
    scaler.update()
    keep_within(loop.model, optim.limits)
    position.step += 1
    position.loss_sum += loss
    position.loss_count += 1
    for name, value in outcome.parts.items():
        position.part_sums[name] = position.part_sums.get(name, 0.0) + float(value)
    if loop.folder is not None:
        loop.folder.step(position.step, loss)


def _restore(recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, stepper: Stepper) -> Position:
    """Load the latest checkpoint, if there is one."""
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is None:
        return Position()
    with checkpoint.as_directory() as folder:
        recipe.load_model(model, os.path.join(folder, "model"))
        state = torch.load(os.path.join(folder, "optimizer.pt"), weights_only=True, map_location="cpu")
        optimizer.load_state_dict(state["optimizer"])
        stepper.scaler.load_state_dict(state["scaler"])
        return Position(**json.loads(Path(folder, "position.json").read_text()))


def _report(loop: _Loop, figures: dict[str, Any]) -> None:
    """Write a checkpoint on the first worker; every worker reports, as Ray Train demands."""
    if loop.folder is None:
        ray_train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        loop.recipe.save_model(loop.model, os.path.join(folder, "model"))
        state = {"optimizer": loop.optimizer.state_dict(), "scaler": loop.stepper.scaler.state_dict()}
        torch.save(state, os.path.join(folder, "optimizer.pt"))
        Path(folder, "position.json").write_text(json.dumps(asdict(loop.position)))
        checkpoint = ray_train.Checkpoint.from_directory(folder)
        ray_train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=f"step-{loop.position.step:08d}")


def _keep_best(loop: _Loop, figures: Mapping[str, Any]) -> None:
    """Replace `<output>/best` when this epoch's validation figure is the highest so far."""
    name, position = loop.config.select_by, loop.position
    if "samples" in figures and name not in figures and (figures["epoch"] + 1) % loop.config.evaluate_every:
        return
    if name not in figures:
        raise InputError(f"select_by is {name!r}; the validation figures are {', '.join(sorted(figures))}.")
    if figures[name] > position.best and loop.folder is not None:
        position.best, position.best_epoch = figures[name], figures["epoch"]
        loop.folder.keep_best(lambda folder: loop.recipe.save_model(loop.model, folder))
