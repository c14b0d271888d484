"""The folder of a training run that a person reads: metrics.jsonl, curves.png, TensorBoard, and the best model.

With an object store as output, files grow in a temporary local folder and are published after every epoch.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.training.curves import curves_png

METRICS_FILE = "metrics.jsonl"
STEPS_BETWEEN_POINTS = 10
"""Steps between two points of the loss in TensorBoard."""


class RunFolder:
    """The record of one run, kept by its first worker.

    Args:
        output: local folder or s3:// prefix.
        wandb_project: Weights & Biases project that gets the figures too; empty: none.
    """

    def __init__(self, output: str, wandb_project: str = "") -> None:
        self.output, self.is_remote = output, files.is_uri(output)
        self.local = tempfile.mkdtemp(prefix="run-folder-") if self.is_remote else output
        os.makedirs(self.local, exist_ok=True)
        metrics = files.join(output, METRICS_FILE)
        self.lines = files.read_text(metrics).splitlines() if files.exists(metrics) else []
        self._tensorboard = _tensorboard(os.path.join(self.local, "tensorboard"))
        self._wandb = _wandb(wandb_project, self.local) if wandb_project else None

    def step(self, step: int, loss: float) -> None:
        """One step's loss."""
        if step % STEPS_BETWEEN_POINTS == 0:
            self._tensorboard.add_scalar("step/loss", loss, step)

    def record(self, figures: Mapping[str, Any], select_by: str) -> list[dict[str, Any]]:
        """Add an epoch to every record; all epochs so far, an epoch that ran twice as it ran last."""
        self.lines.append(json.dumps(dict(figures)))
        files.write_bytes(files.join(self.output, METRICS_FILE), ("\n".join(self.lines) + "\n").encode())
        rows = {row["epoch"]: row for row in map(json.loads, self.lines)}
        history = [row for _, row in sorted(rows.items())]
        files.write_bytes(files.join(self.output, "curves.png"), curves_png(history, select_by))
        numbers = {k: v for k, v in figures.items() if k != "epoch" and isinstance(v, int | float)}
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, figures["epoch"])
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=figures["epoch"])
        if self.is_remote:
            files.copy_folder(os.path.join(self.local, "tensorboard"), files.join(self.output, "tensorboard"))
        return history

    def keep_best(self, save: Callable[[str], None]) -> None:
        """Replace `best` by what `save` writes into a folder."""
        fresh, best = Path(self.local, "best.new"), Path(self.local, "best")
        shutil.rmtree(fresh, ignore_errors=True)
        save(str(fresh))
        shutil.rmtree(best, ignore_errors=True)
        fresh.rename(best)
        if self.is_remote:
            files.copy_folder(str(best), files.join(self.output, "best"))


def _tensorboard(folder: str) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)


def require_wandb() -> None:
    """Check that Weights & Biases can be used.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise InputError(
            "trainer.wandb_project needs the package wandb: pip install wandb, or leave it out."
        ) from error


def _wandb(project: str, folder: str) -> Any:
    require_wandb()
    import wandb  # type: ignore[import-not-found,unused-ignore]

    return wandb.init(project=project, dir=folder, resume="allow")
