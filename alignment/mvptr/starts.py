"""Where a model begins: with the encoders of a saved one, with a BERT, or with the word head of a pre-trained model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.mvptr.checkpoints import Saved, require_vocabularies
from alignment.mvptr.config import MvptrConfig, require_published_form
from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, MvptrForVqa, TaskModel, build
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.tensorize import plain_ids
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.staging import local_folder
from xmatch.models.towers.weights import plain_state, read_checkpoint, require_same

FIXED = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "max_positions",
    "vocab_size",
    "only_word_size",
    "region_width",
    "region_norm",
)
"""What the weights of the encoders are made for."""
BERT_SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
"""Ours, and the names in a BERT's config.json."""


def for_task(saved: Saved, head: HeadConfig, config: MvptrConfig | None = None) -> TaskModel:
    """A model of another task that begins with a saved one's encoders, and temperature where both have one.

    It begins with the head too, where that has the same form.

    Args:
        saved: where to begin.
        head: the new task; weights of what it adds come from torch's current seed.
        config: other lengths, reading place or dropout; none: those of the saved model.

    Raises:
        InputError: the configurations differ in what the encoders' weights are made for.
    """
    old = saved.model
    wanted = config or old.config
    for name in FIXED:
        if getattr(old.config, name) != getattr(wanted, name):
            raise InputError(
                f"the saved model has {name} {getattr(old.config, name)}, the new one {getattr(wanted, name)}, but its "
                "weights are made for the former. Lengths, cross_from and dropout may differ."
            )
    model = build(wanted, head)
    own = model.state_dict()
    same = ("mvptr.", "logit_scale", *(("",) if type(model) is type(old) else ()))
    kept = {
        name: value
        for name, value in old.state_dict().items()
        if name.startswith(same) and name in own and own[name].shape == value.shape
    }
    model.load_state_dict(kept, strict=False)
    return model


def answers_from_words(pretrained: Saved, model: TaskModel, answers: Sequence[str]) -> int:
    """Let the head of a VQA model begin with the word head of a pre-trained one.

    The transform is taken as it is. An answer begins as the mean of the rows, and of the biases, of its words; one
    without words keeps its own.

    Args:
        pretrained: a model for pretraining, with its tokenizer.
        model: for vqa; changed in place.
        answers: its A answers, in order.

    Returns:
        How many answers begin with their words.

    Raises:
        InputError: the models are of other tasks, the head has another form, or there are not as many answers as
            outputs.
    """
    source = pretrained.model
    if model.head.task == "vqa" and model.head.vqa_from != "word_head":
        raise InputError(
            f"a VQA model with head.vqa_from={model.head.vqa_from} has no transform that the word head could begin; "
            "give head.vqa_from=word_head, or leave its head as it is."
        )
    if not isinstance(source, MvptrForPretraining) or not isinstance(model, MvptrForVqa):
        raise InputError(
            f"expected a model for pretraining and one for vqa, got {source.head.task} and {model.head.task}."
        )
    if len(answers) != model.head.outputs:
        raise InputError(f"the model has {model.head.outputs} answers, but {len(answers)} were given.")
    rows = source.mvptr.word_rows if source.words.rows is None else source.words.rows
    model.transform.load_state_dict(source.words.transform.state_dict())
    known = 0
    with torch.no_grad():
        for place, answer in enumerate(answers):
            if ids := plain_ids(pretrained.tokenizer, answer):
                model.answers.weight[place] = rows[ids].mean(0)
                model.answers.bias[place] = source.words.bias[ids].mean()
                known += 1
    return known


def from_bert(
    folder_or_name: str,
    config: MvptrConfig,
    phrases: PhraseVocabulary | None = None,
    head: HeadConfig | None = None,
) -> Saved:
    """A model for pre-training that begins with a BERT of transformers, of the same depth as the whole.

    The first half of its blocks begins the text encoder and the vision encoder, the second half the cross encoder.
    Words, positions, token types, pooler and word head are its own where it has them; a phrase behind the words begins
    as the mean of the rows of its words. What is left (regions, projections, matching) comes from torch's current seed.
    Which weights the published models began with is not known.

    Args:
        folder_or_name: local folder, URI or hub name, with safetensors.
        config: sizes as the BERT's.
        phrases: vocabulary of phrases, whose ids must be rows of the table.
        head: none: tied word heads.

    Raises:
        InputError: it is no BERT, or its sizes are not those of `config`.
    """
    folder = local_folder(folder_or_name, "model")
    bert = files.read_json(os.path.join(folder, "config.json"))
    _require_bert(bert, config, folder_or_name)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    require_vocabularies(config, tokenizer, phrases, folder_or_name)
    model = build(config, head or HeadConfig(task="pretraining"))
    state = plain_state(read_checkpoint(os.path.join(folder, "model.safetensors")), folder_or_name)
    _fill(model, _without_prefix(state), config, folder_or_name)
    if phrases is not None:
        _fill_phrases(model, tokenizer, phrases)
    return Saved(model.eval(), tokenizer, phrases)


def _require_bert(bert: Any, config: MvptrConfig, where: str) -> None:
    if not isinstance(bert, dict) or bert.get("model_type", "bert") != "bert":
        raise InputError(f"{where!r} is no BERT: its config.json says {bert.get('model_type')!r}.")
    require_published_form(bert, repr(where))
    for ours, theirs in BERT_SIZES.items():
        if bert.get(theirs) != getattr(config, ours):
            raise InputError(
                f"{where!r} has {theirs} {bert.get(theirs)}, but the configuration has {ours} {getattr(config, ours)}."
            )


def _without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as in `BertModel`; early checkpoints call the weights of a LayerNorm gamma and beta."""
    names = {name: name.removeprefix("bert.") for name in state}
    late = {n: re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", short)) for n, short in names.items()}
    return {late[name]: value for name, value in state.items() if not name.endswith("position_ids")}


def _fill(model: TaskModel, state: dict[str, torch.Tensor], config: MvptrConfig, where: str) -> None:
    half, own = config.num_layers // 2, model.state_dict()
    begun: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", name)
        if found:
            layer, rest = int(found[1]), found[2]
            stacks = ("text_encoder", "vision_encoder") if layer < half else ("cross_encoder",)
            begun |= {f"mvptr.{stack}.layer.{layer % half}.{rest}": value for stack in stacks}
        elif name.startswith(("embeddings.", "pooler.")):
            begun[f"mvptr.{name}"] = value
        elif name.startswith(("cls.predictions.transform.", "cls.predictions.bias")):
            rest = name.removeprefix("cls.predictions.")
            begun |= {f"{part}.{rest}": value for part in ("words", "tags") if f"{part}.{rest}" in own}
    table = "mvptr.embeddings.word_embeddings.weight"
    words = begun.pop(table, torch.empty(0))
    if len(words) != config.only_word_size:
        raise InputError(f"{where!r} has {len(words)} words, the configuration only_word_size {config.only_word_size}.")
    needed = {
        name: value
        for name, value in own.items()
        if name in begun or (name.startswith("mvptr.") and ("_encoder." in name or ".embeddings." in name))
    }
    needed.pop(table)
    require_same(begun, needed, where, "Give a BERT as transformers saves it.")
    model.load_state_dict(begun, strict=False)
    with torch.no_grad():
        model.mvptr.embeddings.word_embeddings.weight[: len(words)] = words


def _fill_phrases(model: TaskModel, tokenizer: PreTrainedTokenizerBase, phrases: PhraseVocabulary) -> None:
    table, words = model.mvptr.embeddings.word_embeddings.weight, model.config.only_word_size
    with torch.no_grad():
        for number, phrase in phrases.phrases.items():
            ids = plain_ids(tokenizer, " ".join(phrase))
            if number >= words and ids:
                table[number] = table[ids].mean(0)
