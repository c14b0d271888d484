"""What a model starts from, its words included, and which of its parameters learn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xmatch.data.tokenizers import train_wordpiece
from xmatch.data.words import build_vocabulary, read_vocabulary, wrap_words
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.objectives import Objective
from xmatch.training.sample_dropout import recompute_contexts


def load_initial(model: DualEncoder, init_from: str) -> list[str]:
    """Take over the weights of a saved model wherever name and shape agree.

    Args:
        model: changed in place.
        init_from: folder or hub name of a saved model; empty: nothing happens.

    Returns:
        The names taken over.

    Raises:
        InputError: nothing agrees, or the two models read different words.
    """
    if not init_from:
        return []
    folder = checkpoints.resolve(init_from)
    state, own = load_file(os.path.join(folder, checkpoints.WEIGHTS)), model.state_dict()
    taken = [name for name, value in state.items() if name in own and own[name].shape == value.shape]
    if not taken:
        raise InputError(f"no weight of {init_from!r} has the name and shape of one of this model; choose another.")
    if any(name.startswith("text_tower.") for name in taken):
        theirs = checkpoints.read_tokenizer(folder).get_vocab()
        if theirs != model.tokenizer.get_vocab():
            raise InputError(
                f"{init_from!r} reads other words than this model ({len(theirs)} and {len(model.tokenizer)}); its text "
                "tower would see wrong ids. Train with its tokenizer: --tokenizer, the same folder."
            )
    model.load_state_dict({name: state[name].to(own[name].dtype) for name in taken}, strict=False)
    return taken


def starting_tokenizer(
    text: TextTowerConfig, captions: Sequence[str], *, tokenizer: str, init_from: str
) -> PreTrainedTokenizerBase:
    """The tokenizer of a text tower: given, inherited, its own, or learnt from the training captions.

    Args:
        text: the tower.
        captions: a vocabulary is learnt from them where nothing brings one.
        tokenizer: folder or hub name; "" where none was given.
        init_from: the model that the run starts from; "" where there is none.
    """
    if tokenizer:
        return AutoTokenizer.from_pretrained(tokenizer, use_fast=True)
    if init_from and (text.name is None or text.is_recurrent):
        return checkpoints.read_tokenizer(checkpoints.resolve(init_from))
    if text.is_recurrent:
        return wrap_words(read_vocabulary(text.vocab) if text.vocab else build_vocabulary(captions))
    if text.name is None:
        return train_wordpiece(captions, text.vocab_size)
    return AutoTokenizer.from_pretrained(text.name, use_fast=True)


def prepare_gradients(model: DualEncoder, objective: Objective, *, checkpointing: bool) -> None:
    """Leave out of training what the loss does not reach, and set gradient checkpointing of the towers.

    Raises:
        InputError: a tower that learns cannot checkpoint its gradients.
    """
    for name in ("logit_scale", "logit_bias"):
        getattr(model, name).requires_grad_(name in objective.learns)
    if objective.level == "token":
        for parameter in model.text_pool.parameters():
            parameter.requires_grad_(False)
    if not checkpointing:
        return
    for name, tower in (("image", model.image_tower), ("text", model.text_tower)):
        if any(parameter.requires_grad for parameter in tower.parameters()):
            _checkpoint_gradients(name, tower.backbone)


def _checkpoint_gradients(name: str, backbone: Any) -> None:
    settings = {"use_reentrant": False, "context_fn": recompute_contexts}
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable(settings)
    elif hasattr(backbone, "gradient_checkpointing_enable"):  # the name before transformers 5.20
        backbone.gradient_checkpointing_enable(settings)
    elif hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(True)
    else:
        raise InputError(
            f"the {name} tower, a {type(backbone).__name__}, cannot checkpoint its gradients; leave out "
            "trainer.gradient_checkpointing, or freeze that tower."
        )
