"""The model that a training begins with, and how it is written and read on the way."""

from __future__ import annotations

import os

from torch import nn

from alignment.mvptr import checkpoints as mvptr_checkpoints
from alignment.mvptr.checkpoints import Saved
from alignment.mvptr.heads import MvptrForVqa, TaskModel, build
from alignment.mvptr.recipe_config import MvptrTrainConfig
from alignment.mvptr.recipe_data import Start
from alignment.mvptr.starts import answers_from_words, for_task, from_bert
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models import checkpoints

ANSWERS_FILE = "answers.json"
"""Beside a VQA model: its answers by label."""


def begin(start: Start, config: MvptrTrainConfig, init_from: str) -> TaskModel:
    """The model of a task; weights that are not loaded from anywhere come from torch's current seed.

    Args:
        start: sizes and vocabularies.
        config: of the training.
        init_from: saved MVPTR; "": from a BERT, or anew. VQA's head of the form of the word head begins
            with that of a pre-trained model.
    """
    if init_from:
        saved = mvptr_checkpoints.load(init_from)
        model = for_task(saved, start.head, start.config)
        if isinstance(model, MvptrForVqa) and saved.model.head.task == "pretraining":
            answers_from_words(saved, model, start.answers)
        return model
    if config.bert:
        return from_bert(config.bert, start.config, start.phrases, start.head).model
    return build(start.config, start.head)


def save_task_model(model: nn.Module, start: Start, folder: str, **more: str) -> None:
    """A folder that `alignment.mvptr.checkpoints.load` reads; `more` as `save` takes it."""
    assert isinstance(model, TaskModel)
    if start.answers:
        os.makedirs(folder, exist_ok=True)
        files.write_json(os.path.join(folder, ANSWERS_FILE), start.answers)
    mvptr_checkpoints.save(folder, Saved(model, start.tokenizer, start.phrases, start.tags), **more)  # type: ignore[arg-type]


def load_task_model(model: nn.Module, folder: str) -> None:
    """Weights of a folder written by `save_task_model`."""
    checkpoints.load_state(model, folder)


def read_model_answers(folder: str) -> list[str]:
    """The answers of a saved VQA model, by label.

    Raises:
        InputError: there are none.
    """
    path = os.path.join(folder, ANSWERS_FILE)
    if not os.path.exists(path):
        raise InputError(f"{folder!r} has no {ANSWERS_FILE}; give the answers that the model was trained with.")
    found: list[str] = files.read_json(path)
    return found
