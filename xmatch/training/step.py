"""One training step: embeddings of a batch, the loss over the rows of all workers, and its gradients.

Three ways to the same end. *Whole*: one forward, one backward. *Accumulated*: several smaller batches, each with
negatives of its own, one after the other. *Cached*: the loss of the whole batch with the memory of a part of it; first
all embeddings without a graph, then their gradients, then part by part again with a graph (Gao et al. 2021, "Scaling
deep contrastive learning batch size under memory limited setup").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from xmatch.errors import InputError
from xmatch.training.gather import gather_rows, world_size
from xmatch.training.recipe import PartedLoss, Recipe, Rows
from xmatch.training.sample_dropout import SampleDropout
from xmatch.training.watch import Watch

BUCKET_ELEMENTS = 1 << 24
"""Gradient numbers averaged in one collective."""
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How one step is computed."""

    precision: Precision = "fp32"
    """Number format of the towers' forward passes; losses and weights stay float32."""
    accumulate: int = 1
    """Cut each worker's batch into so many, each with its own negatives, and average the gradients by real rows."""
    cached_rows: int = 0
    """Rows of a worker's batch that have a graph at one time, while the loss spans all rows; 0: all of them."""
    gradient_checkpointing: bool = False
    """Compute the towers' activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the towers with torch.compile; needs a C++ compiler on a CPU."""

    def __post_init__(self) -> None:
        """Refuse what excludes each other."""
        if self.accumulate < 1 or self.cached_rows < 0:
            raise InputError("trainer.accumulate must be at least 1 and trainer.cached_rows at least 0.")
        if self.accumulate > 1 and self.cached_rows:
            raise InputError("trainer.accumulate and trainer.cached_rows are two ways to save memory; choose one.")


def check_step(model: nn.Module, config: StepConfig) -> None:
    """Refuse to cut batches where BatchNorm would see the parts instead of the whole.

    Raises:
        InputError: the model normalises by its batch.
    """
    if (config.accumulate > 1 or config.cached_rows) and trains_batch_norm(model):
        name = "trainer.accumulate" if config.accumulate > 1 else "trainer.cached_rows"
        raise InputError(
            f"{name} cuts a batch into parts, but this model has a BatchNorm in training mode, whose statistics would "
            "be those of a part: the result would differ from the whole batch. Use another head (image_head.kind=fc), "
            "or leave that setting out."
        )


def tower_autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The number format of forward passes; for recipes whose losses run a part of the model again, too."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def trains_batch_norm(model: nn.Module) -> bool:
    """Whether a BatchNorm of the model normalises by the batch it sees."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(norm.training and _is_used(norm) for norm in norms)


def _is_used(norm: nn.Module) -> bool:
    parameters = list(norm.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


class Stepper:
    """Computes losses and gradients of a recipe's batches.

    Args:
        recipe: what is trained.
        model: the recipe's model, on its device.
        config: how.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, config: StepConfig) -> None:
        check_step(model, config)
        self.recipe, self.model, self.config = recipe, model, config
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        embed: Callable[[Rows], dict[str, torch.Tensor]] = lambda batch: recipe.embed(model, batch)  # noqa: E731
        self._watch = Watch()
        self._embed = torch.compile(embed) if config.compile else embed

    def embed(self, batch: Rows) -> dict[str, torch.Tensor]:
        """Embeddings (b, ...) of this worker's rows, padding rows included."""
        with tower_autocast(self.device, self.config.precision):
            return self._embed(batch)

    def loss_of(self, embeddings: Rows, valid: torch.Tensor, epoch: int) -> PartedLoss:
        """The loss of the real ones of the rows (b, ...): of all workers where the recipe gathers, else of this one."""
        if self.recipe.gathers:
            embeddings, valid = _gather(embeddings), gather_rows(valid)
        if not bool(valid.all()):
            embeddings = {name: rows[valid] for name, rows in embeddings.items()}
        if not len(next(iter(embeddings.values()))):
            zeros = [rows.sum() * 0.0 for rows in embeddings.values() if rows.is_floating_point()]
            return PartedLoss(torch.stack(zeros).sum(), {})
        found = self.recipe.loss(self.model, embeddings, epoch)
        return found if isinstance(found, PartedLoss) else PartedLoss(found, {})

    def backward(
        self,
        batch: Rows,
        valid: torch.Tensor,
        *,
        samples: torch.Tensor,
        epoch: int,
        seed: int,
        factor: float = 1.0,
    ) -> StepOutcome:
        """Put the gradients of one batch, averaged over workers, into the parameters.

        Args:
            batch: this worker's rows, (b, ...) each, on its device.
            valid: (b,) bool; false for rows that only fill up.
            samples: (b,) int64 numbers of the samples; with `seed` they decide what dropout leaves out.
            epoch: 0-based.
            seed: of dropout; equal on all workers.
            factor: multiplies the loss before its gradient is taken.
        """
        compute = self._cached if self.config.cached_rows else self._accumulated
        outcome = compute(_Part(batch, valid, samples), epoch, seed, factor)
        average_gradients(self.model)
        return outcome

    def watch(self, loss: float, outcome: StepOutcome, step: int) -> None:
        """Stop a run that has diverged or collapsed; see `xmatch.training.watch`."""
        self._watch.step(loss, outcome.embeddings, step)

    @contextmanager
    def _draws(self, samples: torch.Tensor, seed: int) -> Iterator[None]:
        """Dropout by (seed, sample), of samples of shape (b,), within the block."""
        torch.manual_seed(seed)
        with SampleDropout(samples):
            yield

    def _accumulated(self, whole: _Part, epoch: int, seed: int, factor: float) -> StepOutcome:
        parts = list(_parts(whole, -(-len(whole.valid) // self.config.accumulate)))
        total, named = torch.zeros((), device=self.device), dict[str, torch.Tensor]()
        seen: dict[str, torch.Tensor] = {}
        for part, share in zip(parts, self._shares(parts), strict=True):
            with self._draws(part.samples, seed):
                embeddings = self.embed(part.batch)
            found = self.loss_of(embeddings, part.valid, epoch)
            loss = found.total * share
            self.scaler.scale(loss * factor).backward()
            total = total + loss.detach()
            for name, value in found.parts.items():
                named[name] = named.get(name, 0.0) + value.detach() * share
            seen = seen or {name: rows.detach()[part.valid] for name, rows in embeddings.items()}
        return StepOutcome(total, seen, named)

    def _shares(self, parts: list[_Part]) -> list[float]:
        """The weight of each part: its share of the step's real rows, which is 1 / parts where all are full."""
        if len(parts) == 1:
            return [1.0]
        counts = torch.stack([part.valid.sum() for part in parts]).double()
        if self.recipe.gathers and world_size() > 1:
            dist.all_reduce(counts)
        shares: list[float] = (counts / counts.sum().clamp_min(1.0)).tolist()
        return shares

    def _cached(self, whole: _Part, epoch: int, seed: int, factor: float) -> StepOutcome:
        parts = list(_parts(whole, self.config.cached_rows))
        outputs: list[dict[str, torch.Tensor]] = []
        for part in parts:
            with self._draws(part.samples, seed), torch.no_grad():
                outputs.append(self.embed(part.batch))
        joined = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
        leaves = {name: rows.requires_grad_(rows.is_floating_point()) for name, rows in joined.items()}
        loss, named = self.loss_of(leaves, whole.valid, epoch)
        self.scaler.scale(loss * factor).backward()
        for number, part in enumerate(parts):
            with self._draws(part.samples, seed):
                again = self.embed(part.batch)
            start = number * self.config.cached_rows
            learning, gradients = [], []
            for name, rows in again.items():
                gradient = leaves[name].grad
                if rows.requires_grad and gradient is not None:
                    learning.append(rows)
                    gradients.append(gradient[start : start + len(rows)])
            torch.autograd.backward(learning, gradients)
        seen = {name: rows.detach()[whole.valid] for name, rows in leaves.items()}
        return StepOutcome(loss.detach(), seen, {name: value.detach() for name, value in named.items()})


@dataclass(frozen=True)
class StepOutcome:
    """The loss of a step, embeddings of real rows of this worker, for those who watch, and the parts of the loss."""

    loss: torch.Tensor
    embeddings: dict[str, torch.Tensor]
    parts: dict[str, torch.Tensor]


class _Part(NamedTuple):
    """Rows of a batch, which of them are real (b,), and the numbers of their samples (b,)."""

    batch: Rows
    valid: torch.Tensor
    samples: torch.Tensor


def _parts(whole: _Part, rows: int) -> Iterator[_Part]:
    for start in range(0, len(whole.valid), rows):
        piece = slice(start, start + rows)
        batch = {name: tensor[piece] for name, tensor in whole.batch.items()}
        yield _Part(batch, whole.valid[piece], whole.samples[piece])


def _gather(embeddings: Rows) -> dict[str, torch.Tensor]:
    """The rows of all workers, (b, ...) to (W * b, ...); second axes (tokens) are padded with zeros to the longest."""
    if world_size() == 1:
        return dict(embeddings)
    return {name: gather_rows(_to_common_width(rows)) for name, rows in sorted(embeddings.items())}


def _to_common_width(rows: torch.Tensor) -> torch.Tensor:
    """Rows (b, n, ...) with zeros up to the largest n of any worker; rows of one axis as they are."""
    if rows.ndim < 2:
        return rows
    width = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(width, op=dist.ReduceOp.MAX)
    missing = int(width) - rows.shape[1]
    if not missing:
        return rows
    return torch.cat([rows, rows.new_zeros((len(rows), missing, *rows.shape[2:]))], dim=1)


def average_gradients(model: nn.Module) -> None:
    """Average the gradients over workers, in buckets; nothing happens where there is one worker.

    This stands in place of DistributedDataParallel, whose hooks expect one backward pass through its own forward:
    gathered losses use parameters outside of it, and cached steps go backward several times.
    """
    if world_size() == 1:
        return
    gradients = _gradients_of_all(model)
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.numel() for g in bucket) >= BUCKET_ELEMENTS:
            _average(bucket)
            bucket = []
    if bucket:
        _average(bucket)


def _gradients_of_all(model: nn.Module) -> list[torch.Tensor]:
    """The gradients that any worker has; zeros where it is another's alone, whose rows used more of the model."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([p.grad is not None for p in learning], dtype=torch.uint8, device=learning[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, is_used in zip(learning, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    return gradients


def _average(bucket: list[torch.Tensor]) -> None:
    """Average gradients, of any shapes, over workers, in place."""
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(part.reshape(gradient.shape))
