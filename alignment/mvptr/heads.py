"""What stands on an MVPTR for each task, and the models of the tasks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from alignment.mvptr.config import MvptrConfig
from alignment.mvptr.model import Cross, Encoded, Inputs, MvptrModel
from xmatch.errors import InputError

Task = Literal["none", "pretraining", "retrieval", "vqa", "classification", "refexp"]
VqaFrom = Literal["word_head", "pooled", "pooled_and_sides"]
RegionScore = Literal["cosine", "dot", "linear"]
"""The original's modes 1, 2 and 3 of referring expressions."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What stands on the model; what a task does not use is not looked at."""

    task: Task = "none"
    outputs: int = 2
    """Answers of `vqa` (3129 published), classes of `classification` (3 of visual entailment)."""
    classifier: Literal["linear", "mlp"] = "linear"
    """Of all but `pretraining` and the word head of `vqa`: one layer, or two with ReLU between them."""
    hidden_scale: int = 2
    """Width of the middle of `mlp`, in hidden sizes."""
    tied: bool = True
    """Predict masked words with the rows of the shared table; false: with rows of their own, as the original's
    released weights do, which were tied by copying once."""
    vqa_from: VqaFrom = "word_head"
    """Of `vqa`: a head of the form of the word head; a classifier of the pooled output; or one of the pooled output
    beside what the vectors of text and image alone say (the original's use_pretrain, neither, and use_single)."""
    questions: bool = False
    """Of `pretraining`: tell right answers from wrong ones, too."""
    region_score: RegionScore = "cosine"
    """Of `refexp`: how a region is scored."""
    layer: int | None = None
    """Of `refexp`: layer of the cross encoder, from 0, that is read; null: the last."""

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        if self.task not in get_args(Task) or self.region_score not in get_args(RegionScore):
            raise InputError(
                f"head: task is one of {', '.join(get_args(Task))}, region_score one of "
                f"{', '.join(get_args(RegionScore))}; got {self.task!r} and {self.region_score!r}."
            )
        if self.vqa_from not in get_args(VqaFrom):
            raise InputError(f"head: vqa_from is one of {', '.join(get_args(VqaFrom))}; got {self.vqa_from!r}.")
        if self.outputs < 1 or self.hidden_scale < 1 or self.classifier not in ("linear", "mlp"):
            raise InputError("head: outputs and hidden_scale are at least 1, classifier is linear or mlp.")


class WordHead(nn.Module):
    """Predicts words: a transform, then the inner products with their rows, and a bias a word.

    Args:
        config: of the model.
        tied: use the rows of the shared table, given at each call; false: rows of its own.
    """

    def __init__(self, config: MvptrConfig, *, tied: bool) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config.bert())
        self.bias = nn.Parameter(torch.zeros(config.only_word_size))
        self.rows = None if tied else nn.Parameter(torch.zeros(config.only_word_size, config.hidden_size))

    def forward(self, states: torch.Tensor, word_rows: torch.Tensor) -> torch.Tensor:
        """Logits (..., W) of states (..., H), with the shared table's (W, H) rows."""
        rows = word_rows if self.rows is None else self.rows
        logits: torch.Tensor = F.linear(self.transform(states), rows, self.bias)
        return logits


def classifier(config: MvptrConfig, head: HeadConfig, outputs: int, states: int = 1) -> nn.Module:
    """From so many hidden states, side by side, to `outputs` logits."""
    width, middle = states * config.hidden_size, config.hidden_size * head.hidden_scale
    if head.classifier == "linear":
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, outputs))


class TaskModel(nn.Module):
    """An MVPTR and its head's configuration; the models of the tasks add the head."""

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__()
        self.config, self.head = config, head
        self.mvptr = MvptrModel(config)
        self.dropout = nn.Dropout(config.dropout)

    def _begin(self, *modules: nn.Module) -> None:
        for module in modules:
            module.apply(self.mvptr.initialise)


class Matcher(TaskModel, ABC):
    """A model that tells whether text and image belong together: by their own vectors, and as a pair.

    match_label: which of the two classes is a match.
    """

    match_label: int

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @abstractmethod
    def match_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of pooled outputs (B, H)."""

    def match_probability(self, text: Encoded, image: Encoded) -> torch.Tensor:
        """How surely row i of both sides are a pair, float32 of shape (B,): the fine score of retrieval."""
        logits = self.match_logits(self.mvptr.cross(text, image).pooled)
        return logits.float().softmax(-1)[:, self.match_label]


class MvptrForPretraining(Matcher):
    """Masked words and tags, matching, and answers; 0 is a match and a right answer, as in the original."""

    match_label = 0

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        self.words = WordHead(config, tied=head.tied)
        self.tags = WordHead(config, tied=head.tied)
        self.matching = nn.Linear(config.hidden_size, 2)
        self._begin(self.words, self.tags, self.matching)
        for part in (self.words, self.tags):
            if part.rows is not None:
                part.rows.data.copy_(self.mvptr.word_rows.detach())
        self.questions = nn.Linear(config.hidden_size, 2) if head.questions else None
        if self.questions is not None:
            self._begin(self.questions)

    def match_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of pooled outputs (B, H)."""
        logits: torch.Tensor = self.matching(pooled)
        return logits

    def word_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., W) of masked words, of states (..., H) of the cross encoder."""
        logits: torch.Tensor = self.words(states, self.mvptr.word_rows)
        return logits

    def tag_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., W) of masked tags, of states (..., H) of the vision encoder."""
        logits: torch.Tensor = self.tags(states, self.mvptr.word_rows)
        return logits


class MvptrForRetrieval(Matcher):
    """Matching alone; 1 is a match, as in the original."""

    match_label = 1

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        self.classifier = classifier(config, head, 2)
        self._begin(self.classifier)

    def match_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) of pooled outputs (B, H)."""
        logits: torch.Tensor = self.classifier(self.dropout(pooled))
        return logits


class MvptrForVqa(TaskModel):
    """Answers by a head of the form of the word head, so that it can begin with the weights of that one."""

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        self.transform = BertPredictionHeadTransform(config.bert())
        self.answers = nn.Linear(config.hidden_size, head.outputs)
        self._begin(self.transform, self.answers)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Logits (B, A) of the answers, of the cross encoder's first place."""
        _, pairs = self.mvptr(inputs)
        logits: torch.Tensor = self.answers(self.transform(self.dropout(pairs.sequence[:, 0])))
        return logits


class MvptrForClassification(TaskModel):
    """Classes of pairs by the pooled output: visual entailment, and VQA without the word head's form."""

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        self.classifier = classifier(config, head, head.outputs)
        self._begin(self.classifier)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Logits (B, A) of the classes."""
        _, pairs = self.mvptr(inputs)
        logits: torch.Tensor = self.classifier(self.dropout(pairs.pooled))
        return logits


class MvptrForVqaBySides(TaskModel):
    """Answers by the pooled output, beside what the vectors of text and image alone say (the original's use_single)."""

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        width = config.hidden_size
        self.sides = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.classifier = classifier(config, head, head.outputs, states=2)
        self._begin(self.sides, self.classifier)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Logits (B, A) of the answers; the vectors are the projected ones before they get unit length."""
        sides, pairs = self.mvptr(inputs)
        text = sides.text.states[:, 0] @ self.mvptr.text_projection
        image = sides.image.states[:, 0] @ self.mvptr.vision_projection
        alone = self.sides(self.dropout(torch.cat([text, image, image - text, image * text], dim=1)))
        logits: torch.Tensor = self.classifier(self.dropout(torch.cat([pairs.pooled, alone], dim=1)))
        return logits


class MvptrForRefexp(TaskModel):
    """Scores of regions for an expression."""

    def __init__(self, config: MvptrConfig, head: HeadConfig) -> None:
        super().__init__(config, head)
        if head.layer is not None and not 0 <= head.layer < config.num_layers // 2:
            raise InputError(
                f"head.layer counts the cross encoder's {config.num_layers // 2} layers; got {head.layer}."
            )
        self.classifier = classifier(config, head, 1)
        self._begin(self.classifier)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """(B, R): cosines, or logits, of all places for regions, padding too."""
        _, pairs = self.mvptr(inputs)
        return self.region_scores(pairs)

    def region_scores(self, pairs: Cross) -> torch.Tensor:
        """The same (B, R), of what the cross encoder makes of pairs."""
        states = self.dropout(pairs.layers[-1 if self.head.layer is None else self.head.layer])
        first, regions = states[:, 0], states[:, self.config.first_region :]
        if self.head.region_score == "linear":
            logits: torch.Tensor = self.classifier(regions)[..., 0]
            return logits
        if self.head.region_score == "cosine":
            first, regions = F.normalize(first, dim=-1), F.normalize(regions, dim=-1)
        return torch.einsum("brh,bh->br", regions, first)


MODELS: dict[Task, type[TaskModel]] = {
    "none": TaskModel,
    "pretraining": MvptrForPretraining,
    "retrieval": MvptrForRetrieval,
    "classification": MvptrForClassification,
    "refexp": MvptrForRefexp,
}


VQA_MODELS: dict[VqaFrom, type[TaskModel]] = {
    "word_head": MvptrForVqa,
    "pooled": MvptrForClassification,
    "pooled_and_sides": MvptrForVqaBySides,
}
"""Those of `vqa`, by what they answer from."""


def build(config: MvptrConfig, head: HeadConfig) -> TaskModel:
    """The model of a task; weights come from torch's current seed."""
    kind = VQA_MODELS[head.vqa_from] if head.task == "vqa" else MODELS[head.task]
    return kind(config, head)


def refexp_loss(scores: torch.Tensor, overlaps: torch.Tensor, kind: RegionScore) -> torch.Tensor:
    """How far the scores of regions are from their overlap with the box that is meant; the mean over regions.

    Args:
        scores: (B, R) of `MvptrForRefexp`.
        overlaps: (B, R) intersection over union; negative: padding, which is left out.
        kind: `cosine`: squared distance to the overlap. `dot`: cross-entropy with overlap of at least 0.5.
            `linear`: cross-entropy with the overlap itself.
    """
    valid = (overlaps >= 0).float()
    if kind == "cosine":
        terms = (scores - overlaps) ** 2
    else:
        targets = (overlaps >= 0.5).float() if kind == "dot" else overlaps.clamp_min(0)
        terms = F.binary_cross_entropy_with_logits(scores.float(), targets, reduction="none")
    return (terms * valid).sum() / valid.sum().clamp_min(1.0)
