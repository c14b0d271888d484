"""A dual encoder small enough to read, on vectors instead of photos and words, that trains with every objective."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from xmatch.models.pooling import build_pooling, pool
from xmatch.training.objectives import LossConfig, Scored, objective, same_rows
from xmatch.training.optim import GroupConfig, parameter_groups
from xmatch.training.recipe import ParameterGroup, Rows, SampleKey
from xmatch.training.sample_dropout import recompute_contexts

WIDTH = 5


class PairModel(nn.Module):
    """A text side with dropout, an image side, and the scalars of the losses."""

    def __init__(self, dropout: float, batch_norm: bool, checkpointing: bool) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(8)] if batch_norm else []
        self.text = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.image = nn.Sequential(nn.Linear(WIDTH, 8), *norm, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.pool = build_pooling("mean", 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.logit_bias = nn.Parameter(torch.tensor(-0.5))
        self.checkpointing = checkpointing

    def through(self, side: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        if not self.checkpointing:
            return side(rows)
        return checkpoint(side, rows, use_reentrant=False, context_fn=recompute_contexts)


class PairRecipe:
    """Captions of 1 to 4 tokens, two captions an image; `negatives` as in the configuration of the loss."""

    def __init__(
        self, loss: LossConfig, *, dropout: float = 0.0, batch_norm: bool = False, checkpointing: bool = False
    ) -> None:
        self.config, self.objective, self.num_samples = loss, objective(loss.name), 24
        self.settings = (dropout, batch_norm, checkpointing)

    @property
    def gathers(self) -> bool:
        return self.config.negatives == "global"

    def build_model(self) -> PairModel:
        torch.manual_seed(7)
        model = PairModel(*self.settings)
        for name in ("logit_scale", "logit_bias"):
            getattr(model, name).requires_grad_(name in self.objective.learns)
        return model.train()

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return parameter_groups(model, GroupConfig())

    def batch(self, indices: np.ndarray, key: SampleKey) -> dict[str, torch.Tensor]:
        draws = [np.random.default_rng((key.seed, int(i))) for i in indices]
        lengths = [1 + int(i) % 4 for i in indices]
        text = torch.zeros(len(indices), max(lengths), WIDTH)
        for row, (draw, length) in enumerate(zip(draws, lengths, strict=True)):
            text[row, :length] = torch.from_numpy(draw.standard_normal((length, WIDTH))).float()
        image = np.stack([np.random.default_rng((1, key.seed, int(i) // 2)).standard_normal(WIDTH) for i in indices])
        return {
            "text": text,
            "mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(),
            "image": torch.from_numpy(image).float(),
            "image_row": torch.from_numpy(indices // 2),
        }

    def embed(self, model: PairModel, batch: Rows) -> dict[str, torch.Tensor]:
        text, mask = model.through(model.text, batch["text"]), batch["mask"]
        if self.objective.level == "sentence":
            text = pool(model.pool, text, mask.bool())
        image = model.through(model.image, batch["image"])
        rows = {
            "text": normalize(text.float(), dim=-1),
            "image": normalize(image.float(), dim=-1),
            "image_row": batch["image_row"],
        }
        return {**rows, "mask": mask} if self.objective.level == "token" else rows

    def loss(self, model: PairModel, embeddings: Rows, epoch: int) -> torch.Tensor:
        text, image = embeddings["text"], embeddings["image"]
        same = same_rows(embeddings["image_row"], self.config)
        scale = model.logit_scale.exp()
        scored = Scored(text, image, embeddings.get("mask"), same, scale, model.logit_bias, epoch)
        return self.objective.loss(scored, self.config)
