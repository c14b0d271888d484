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
from alignment.mvptr.recipe_base import MvptrRecipe
from alignment.mvptr.tasks import refexp
from alignment.mvptr.tasks.outcomes import task_figures
from alignment.mvptr.tasks.predicting import task_scores
from alignment.mvptr.tasks.targets import targets_of
from alignment.mvptr.tasks.vqa import answer_loss
from xmatch.training.recipe import Rows, SampleKey


class MvptrTaskRecipe(MvptrRecipe):
    """Trains the model of a task; a recipe in the sense of `xmatch.training.recipe.Recipe`.

    The loss is a mean over the rows of all workers, so that it does not depend on how they are shared out.
    """

    gathers = True

    def prepare(self) -> None:
        """Given boxes of the validation images, where there are any."""
        self.detections = refexp.read_detections(self.config.detections) if self.config.detections else None

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


def _with_masks(ids: torch.Tensor, inputs: PairInputs, share: float, draw: np.random.Generator) -> torch.Tensor:
    """A text's ids, of shape (L,), with a share of them [MASK]; [CLS], [SEP] and padding stay."""
    tokenizer = inputs.tokenizer
    kept = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    may = torch.tensor([int(one) not in kept for one in ids])
    chosen = torch.from_numpy(draw.random(len(ids)) < share) & may
    return torch.where(chosen, int(tokenizer.mask_token_id or 0), ids)
