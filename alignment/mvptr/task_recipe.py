"""How an MVPTR is fine-tuned to answer questions, judge sentences, and find what an expression means."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from alignment.mvptr.heads import TaskModel, refexp_loss
from alignment.mvptr.masking import draw_of
from alignment.mvptr.model import Inputs
from alignment.mvptr.pair_inputs import PairInputs
from alignment.mvptr.pair_recipe import MvptrData, open_inputs
from alignment.mvptr.recipe_config import MvptrTrainConfig
from alignment.mvptr.recipe_data import Start
from alignment.mvptr.recipe_start import begin, load_task_model, save_task_model
from alignment.mvptr.tasks import refexp
from alignment.mvptr.tasks.outcomes import task_figures
from alignment.mvptr.tasks.predicting import task_scores
from alignment.mvptr.tasks.targets import targets_of
from alignment.mvptr.tasks.vqa import answer_loss
from xmatch.training.optim import GroupConfig, parameter_groups
from xmatch.training.recipe import ParameterGroup, Rows, SampleKey
from xmatch.training.step import Precision


class MvptrTaskRecipe:
    """Trains the model of a task; a recipe in the sense of `xmatch.training.recipe.Recipe`.

    The loss is a mean over the rows of all workers, so that it does not depend on how they are shared out.

    Args:
        config: task and loss.
        start: sizes and vocabularies.
        groups: rates and decay.
        data: the samples.
        precision: number format of what the loss itself computes with the model; nothing here.
    """

    gathers = True

    def __init__(
        self,
        config: MvptrTrainConfig,
        start: Start,
        groups: GroupConfig,
        data: MvptrData,
        precision: Precision = "fp32",
    ) -> None:
        self.precision = precision
        self.config, self.start, self.groups, self.data = config, start, groups, data
        self.train, self.valid = open_inputs(config, start, data)
        self.detections = refexp.read_detections(config.detections) if config.detections else None

    @property
    def num_samples(self) -> int:
        """Training samples."""
        return len(self.train)

    def build_model(self) -> nn.Module:
        """The model to start from."""
        return begin(self.start, self.config, self.data.init_from).train()

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters by decay, rate and time of thawing."""
        return parameter_groups(model, self.groups)

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Samples as tensors (B, ...) with their targets; a function of (key, indices), row by row."""
        return {**self.inputs(indices, key), "targets": targets_of(self.start.head, self.train, indices)}

    def inputs(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Samples as tensors (B, ...) by the names of the model's inputs."""
        inputs = self.train.batch(indices)
        if self.config.mask_training:
            ids = [
                _with_masks(row, self.train, self.config.mask_training, draw_of(key, int(index)))
                for row, index in zip(inputs.input_ids_a, indices, strict=True)
            ]
            inputs = inputs._replace(input_ids_a=torch.stack(ids))
        return dict(zip(Inputs._fields, inputs, strict=True))

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """The scores of each sample, (B, A) or (B, R), and its targets."""
        assert isinstance(model, TaskModel)
        return {"scores": model(Inputs(*(batch[name] for name in Inputs._fields))).float(), "targets": batch["targets"]}

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor:
        """The mean loss of all rows (B, ...) given."""
        scores, targets, head = embeddings["scores"], embeddings["targets"], self.start.head
        if head.task == "vqa":
            return answer_loss(scores, targets, self.config.answer_loss).mean()
        if head.task == "refexp":
            return refexp_loss(scores, targets, head.region_score)
        return F.cross_entropy(scores, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures of the task on the validation split, in per cent; `accuracy` is one of them."""
        assert isinstance(model, TaskModel)
        scores = task_scores(model, self.valid, np.arange(len(self.valid)))
        return task_figures(self.start.head, self.valid, scores, self.detections)

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `alignment.mvptr.checkpoints.load` reads."""
        save_task_model(model, self.start, folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`."""
        load_task_model(model, folder)


def _with_masks(ids: torch.Tensor, inputs: PairInputs, share: float, draw: np.random.Generator) -> torch.Tensor:
    """A text's ids, of shape (L,), with a share of them [MASK]; [CLS], [SEP] and padding stay."""
    tokenizer = inputs.tokenizer
    kept = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    may = torch.tensor([int(one) not in kept for one in ids])
    chosen = torch.from_numpy(draw.random(len(ids)) < share) & may
    return torch.where(chosen, int(tokenizer.mask_token_id or 0), ids)
