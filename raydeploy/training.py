"""A recipe under Ray Train: workers, checkpoints, resume, and a record of the run.

Randomness is a function of (seed, epoch, step, worker), never of what happened before, so a run that is killed and
started again follows the curve of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train as ray_train
import ray.train.torch as ray_torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from torch import nn

from raydeploy.streams import find_input_error
from xmatch.data.epoch_order import epoch_indices
from xmatch.errors import InputError
from xmatch.training.optim import OptimConfig, build_optimizer, rate_at
from xmatch.training.recipe import Recipe, SampleKey

RUN_NAME = "checkpoints"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, on how many workers, and how often a checkpoint is written."""

    epochs: int = 20
    """Passes over the training captions."""
    batch_size: int = 256
    """Captions per step over all workers together."""
    workers: int = 1
    """Training processes."""
    cpus_per_worker: int = 1
    """CPU cores (and torch threads) of each worker."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    seed: int = 9595
    """Seed of order, dropout, augmentation and starting weights."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints within an epoch; 0: only at the end of each epoch."""
    select_by: str = "rsum"
    """Validation figure that chooses the best model (higher is better)."""
    max_failures: int = 3
    """Worker losses survived before the run fails."""
    stop_after_epochs: int | None = None
    """Stop early after so many epochs of this run; the schedule still reckons with all, and a rerun goes on."""
    loader_threads: int = 0
    """Processes per worker that prepare batches ahead; 0 prepares them in the worker itself."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        if min(self.epochs, self.batch_size, self.workers, self.cpus_per_worker) < 1:
            raise InputError("trainer: epochs, batch_size, workers and cpus_per_worker must be at least 1.")


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


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its best model's folder, the figures of every epoch, and the rate."""

    best_folder: str
    best_epoch: int
    history: list[dict[str, Any]]
    samples_per_s: float


class LossModule(nn.Module):
    """A recipe's loss as one module, so that DistributedDataParallel sees every gradient of the step."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Mapping[str, torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scalar loss of a batch; zero, with zero gradients, when the batch is empty."""
        if not batch:
            return sum((p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad), torch.zeros(()))
        return self._loss(self.model, batch)


class _Batches(torch.utils.data.Dataset[Mapping[str, torch.Tensor]]):
    """The batches of one epoch, by step, for a loader that may prepare them in other processes."""

    def __init__(self, recipe: Recipe, steps: np.ndarray, key: SampleKey) -> None:
        self.recipe, self.steps, self.key = recipe, steps, key

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Mapping[str, torch.Tensor]:
        indices = self.steps[step]
        indices = indices[indices >= 0]
        return self.recipe.batch(indices, self.key) if len(indices) else {}


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
        config: length, workers and checkpoints.
        optim: optimizer and schedule.
        output: a local absolute folder that every worker can reach.
        on_epoch: called on the driver with each epoch's figures.

    Raises:
        InputError: `output` is no local folder.
    """
    if "://" in output:
        raise InputError(f"training writes to a local or shared folder for now, got {output!r}; give an absolute path.")
    output = os.path.abspath(output)
    loop_config = {"factory": recipe_factory, "trainer": config, "optim": optim, "output": output}
    resources = {"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})}
    trainer = ray_torch.TorchTrainer(
        _worker_loop,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _following(Path(output) / METRICS_FILE, on_epoch):
        _raise_ours(trainer.fit)
    history = read_history(output)
    best = max(history, key=lambda row: (row[config.select_by], -row["epoch"]))
    return TrainResult(
        best_folder=str(Path(output) / "best"),
        best_epoch=best["epoch"],
        history=history,
        samples_per_s=sum(r["samples"] for r in history) / max(1e-9, sum(r["seconds"] for r in history)),
    )


def read_history(output: str) -> list[dict[str, Any]]:
    """The figures of every epoch of a run, in order; an epoch that ran twice counts as it ran last."""
    path = Path(output) / METRICS_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for _, row in sorted({row["epoch"]: row for row in rows}.items())]


def _raise_ours(fit_once: Callable[[], Any]) -> None:
    """Run Ray's fit; an InputError that a worker raised comes home as one."""
    try:
        fit_once()
    except Exception as error:
        failures = getattr(error, "worker_failures", None) or {}
        for failure in (error, *failures.values()):
            ours = find_input_error(failure)
            if ours is not None:
                raise InputError(str(ours)) from error
        raise


@contextmanager
def _following(path: Path, on_epoch: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Hand every epoch's line to the driver while the workers write it."""
    stop = threading.Event()
    seen = len(path.read_text().splitlines()) if path.exists() else 0

    def drain(start: int) -> int:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        for line in lines[start:]:
            on_epoch(json.loads(line))
        return max(start, len(lines))

    def follow() -> None:
        count = seen
        while not stop.wait(0.5):
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
    config: TrainerConfig = settings["trainer"]
    optim: OptimConfig = settings["optim"]
    torch.set_num_threads(config.cpus_per_worker)
    context = ray_train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    recipe: Recipe = settings["factory"]()
    model = recipe.build_model()
    optimizer = build_optimizer(recipe.parameter_groups(model), optim)
    position = _restore(recipe, model, optimizer)
    module = ray_torch.prepare_model(LossModule(model, recipe.loss))
    device = next(module.parameters()).device
    writer = _tensorboard(settings["output"]) if rank == 0 else None
    total_steps = config.epochs * -(-recipe.num_samples // config.batch_size)
    last = min(config.epochs, position.epoch + (config.stop_after_epochs or config.epochs))
    for epoch in range(position.epoch, last):
        started, samples_before = time.monotonic(), position.samples_done
        for batch in _epoch(recipe, config, position, rank, world):
            _step(module, batch, optimizer, optim, position, total_steps, config.seed, rank, device)
            position.samples_done = min(recipe.num_samples, position.samples_done + config.batch_size)
            every = config.checkpoint_every_steps
            if every and position.step % every == 0 and position.samples_done < recipe.num_samples:
                _report(recipe, model, optimizer, position, rank, {"epoch": epoch})
        seconds, samples = time.monotonic() - started, recipe.num_samples - samples_before
        figures: dict[str, Any] = {"epoch": epoch, "loss": position.loss_sum / max(1, position.loss_count)}
        if rank == 0:
            model.eval()
            figures |= recipe.evaluate(model)
            model.train()
            figures |= {"seconds": seconds, "samples": samples, "samples_per_s": samples / max(1e-9, seconds)}
            _keep_best(recipe, model, position, figures, config, settings["output"])
            _record(figures, writer, settings["output"])
        position.epoch, position.samples_done, position.loss_sum, position.loss_count = epoch + 1, 0, 0.0, 0
        _report(recipe, model, optimizer, position, rank, figures)


def _epoch(
    recipe: Recipe, config: TrainerConfig, position: Position, rank: int, world: int
) -> Iterator[Mapping[str, torch.Tensor]]:
    """The remaining batches of the current epoch for this worker."""
    steps = epoch_indices(
        recipe.num_samples,
        seed=config.seed,
        epoch=position.epoch,
        worker_rank=rank,
        world_size=world,
        batch_size=config.batch_size,
        position=position.samples_done,
    )
    batches = _Batches(recipe, steps, SampleKey(config.seed, position.epoch))
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=config.loader_threads)
    yield from loader


def _step(
    module: nn.Module,
    batch: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    optim: OptimConfig,
    position: Position,
    total_steps: int,
    seed: int,
    rank: int,
    device: torch.device,
) -> None:
    """One optimizer step; dropout is drawn from (seed, step, worker)."""
    torch.manual_seed(hash((seed, position.step, rank)) & 0x7FFFFFFF)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * rate_at(position.step, total_steps, optim)
    optimizer.zero_grad(set_to_none=True)
    loss = module({name: tensor.to(device) for name, tensor in batch.items()})
    if not bool(torch.isfinite(loss)):
        raise InputError(
            f"the loss became {float(loss)} at step {position.step}: the run diverged. Lower optim.lr, raise the "
            "warm-up, or look for broken features; the last checkpoint is intact."
        )
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], optim.clip_norm)
    optimizer.step()
    position.step += 1
    position.loss_sum += float(loss.detach())
    position.loss_count += 1


def _restore(recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Load the latest checkpoint, if there is one."""
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is None:
        return Position()
    with checkpoint.as_directory() as folder:
        recipe.load_model(model, os.path.join(folder, "model"))
        state = torch.load(os.path.join(folder, "optimizer.pt"), weights_only=True, map_location="cpu")
        optimizer.load_state_dict(state)
        return Position(**json.loads(Path(folder, "position.json").read_text()))


def _report(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    rank: int,
    figures: dict[str, Any],
) -> None:
    """Write a checkpoint on the first worker; every worker reports, as Ray Train demands."""
    if rank != 0:
        ray_train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        recipe.save_model(model, os.path.join(folder, "model"))
        torch.save(optimizer.state_dict(), os.path.join(folder, "optimizer.pt"))
        Path(folder, "position.json").write_text(json.dumps(asdict(position)))
        checkpoint = ray_train.Checkpoint.from_directory(folder)
        ray_train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=f"step-{position.step:08d}")


def _keep_best(
    recipe: Recipe,
    model: nn.Module,
    position: Position,
    figures: dict[str, Any],
    config: TrainerConfig,
    output: str,
) -> None:
    """Replace `<output>/best` when this epoch's validation figure is the highest so far."""
    if config.select_by not in figures:
        raise InputError(f"select_by is {config.select_by!r}; the validation figures are {', '.join(sorted(figures))}.")
    if figures[config.select_by] <= position.best:
        return
    position.best, position.best_epoch = figures[config.select_by], figures["epoch"]
    fresh, best = Path(output, "best.new"), Path(output, "best")
    shutil.rmtree(fresh, ignore_errors=True)
    recipe.save_model(model, str(fresh))
    shutil.rmtree(best, ignore_errors=True)
    fresh.rename(best)


def _record(figures: dict[str, Any], writer: Any, output: str) -> None:
    """Append the epoch to metrics.jsonl and TensorBoard."""
    with open(Path(output) / METRICS_FILE, "a", encoding="utf-8") as sink:
        sink.write(json.dumps(figures) + "\n")
    for name, value in figures.items():
        if name != "epoch" and isinstance(value, int | float):
            writer.add_scalar(name, value, figures["epoch"])
    writer.flush()


def _tensorboard(output: str) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.path.join(output, "tensorboard"))
