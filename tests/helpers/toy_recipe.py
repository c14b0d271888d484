"""A recipe small enough to read: a linear map learns to double; it can kill its worker once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import ray.train
import torch
from torch import nn

from xmatch.training.optim import GroupConfig, parameter_groups
from xmatch.training.recipe import ParameterGroup, Rows, SampleKey


class ToyRecipe:
    """Learns y = 2x with dropout.

    `flag` names a file whose absence makes a worker die once, with its third batch of epoch `die_in`; if it `hangs`,
    it waits there until someone else ends it.
    """

    num_samples = 23
    gathers = True

    def __init__(
        self, *, flag: str = "", die_in: int = -1, seen: str = "", nan_from: int = 10**9, hangs: bool = False
    ) -> None:
        self.flag, self.die_in, self.seen, self.nan_from, self.hangs = flag, die_in, seen, nan_from, hangs
        self.batches = 0

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3))

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return parameter_groups(model, GroupConfig())

    def batch(self, indices: np.ndarray, key: SampleKey) -> dict[str, torch.Tensor]:
        if self.seen:
            with open(f"{self.seen}-{os.getpid()}", "a") as sink:
                sink.writelines(f"{key.epoch} {i}\n" for i in indices)
        self.batches += key.epoch == self.die_in
        if self.batches == 3 and self._first():
            ray.train.get_all_reported_checkpoints()  # waits until the last one, milliseconds old, is registered
            while self.hangs:
                time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        rows = np.stack([np.random.default_rng((key.seed, int(i))).standard_normal(3) for i in indices])
        scale = float("nan") if key.epoch >= self.nan_from else 1.0
        return {"x": torch.from_numpy(rows * scale).float()}

    def _first(self) -> bool:
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        return {"x": batch["x"], "y": model(batch["x"])}

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor:
        return (embeddings["y"] - 2 * embeddings["x"]).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x = torch.eye(3)
        with torch.no_grad():
            return {"rsum": -float((model(x) - 2 * x).square().mean())}

    def save_model(self, model: nn.Module, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), Path(folder) / "w.pt")

    def load_model(self, model: nn.Module, folder: str) -> None:
        model.load_state_dict(torch.load(Path(folder) / "w.pt", weights_only=True))
