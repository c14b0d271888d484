"""What every importer shares: moving tensors between two ways to name them, and models that wait to be filled.

A map is a list of pairs (ours, theirs) of key beginnings; the first that fits counts. What no pair names is ours alone
and keeps its starting value.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, PretrainedConfig, PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.towers.image import ImageTower
from xmatch.models.towers.text import TextTower
from xmatch.models.towers.weights import State, difference, plain_state, require_same

Renames = Sequence[tuple[str, str]]

HEAD_WIDTH = 64
"""Width of an attention head in every BERT and CLIP that was published."""


def original_name(key: str, renames: Renames) -> str | None:
    """The original's name of one of our keys; None where it has none."""
    for ours, theirs in renames:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    return None


def fill(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    renames: Renames,
    where: str,
    *,
    unused: str = "",
    hint: str = "",
) -> None:
    """Put an original's tensors into a model, strictly; floating-point numbers become float32.

    Args:
        model: ours; what the map does not name stays as it is.
        state: under the original's names.
        renames: the map.
        where: path, for messages.
        unused: pattern of the original's keys that it stores and never reads.
        hint: what to try where names or shapes differ.

    Raises:
        InputError: names or shapes differ; lists the differences, each missing key with the nearest that is there.
    """
    own = model.state_dict()
    names = {key: name for key in own if (name := original_name(key, renames)) is not None}
    wanted = {name: own[key] for key, name in names.items()}
    given = {k: v for k, v in state.items() if k in wanted or not unused or not re.search(unused, k)}
    require_same(given, wanted, where, hint)
    found = {key: state[n].to(own[key].dtype).reshape(own[key].shape) for key, n in names.items() if n in state}
    model.load_state_dict(found, strict=False)


def collect(model: nn.Module, renames: Renames) -> State:
    """A model's tensors under the original's names, on the CPU; what is ours alone is left out."""
    found: State = {}
    for key, tensor in model.state_dict().items():
        name = original_name(key, renames)
        if name is not None:
            found[name] = tensor.detach().cpu().clone()
    return found


def halves_of(content: Any, where: str, what: str) -> tuple[State, State, dict[str, Any]]:
    """Image state, text state and options of a checkpoint of VSE++ and its descendants.

    Args:
        content: a dict with model: [image state, text state] and opt: an `argparse.Namespace`.
        where: path, for messages.
        what: name of the original, for messages.

    Raises:
        InputError: it is not such a dict.
    """
    if not isinstance(content, dict) or not all(name in content for name in ("model", "opt")):
        raise InputError(f"{where!r} is no {what} checkpoint: expected a dict with model and opt.")
    halves, opt = content["model"], content["opt"]
    if not isinstance(halves, list | tuple) or len(halves) != 2 or not isinstance(opt, argparse.Namespace):
        raise InputError(f"{where!r}: expected model to be [image state, text state], and opt a Namespace.")
    images, texts = (plain_state(half, where) for half in halves)
    return images, texts, vars(opt)


def refuse_options(options: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse a model that was trained with an option which a dual encoder of ours does not have.

    Raises:
        InputError: one was set; names it.
    """
    found = [name for name in names if options.get(name)]
    if found:
        raise InputError(f"{where!r} was trained with --{found[0]}, which a dual encoder of ours does not have.")


def named_halves(images: Mapping[str, torch.Tensor], texts: Mapping[str, torch.Tensor]) -> State:
    """Both halves in one, each key behind its half's name."""
    named = {f"image {key}": value for key, value in images.items()}
    return named | {f"text {key}": value for key, value in texts.items()}


def half_renames(image: Renames, text: Renames) -> list[tuple[str, str]]:
    """The map of both halves, for the keys of `named_halves`."""
    return [(ours, f"image {theirs}") for ours, theirs in image] + [(ours, f"text {theirs}") for ours, theirs in text]


def shape_of(state: Mapping[str, torch.Tensor], name: str, where: str, axes: int = 2) -> tuple[int, ...]:
    """The shape of a tensor that decides what model a file holds.

    Raises:
        InputError: it is not there, or has not so many axes; shows what is.
    """
    if name not in state:
        raise InputError(f"{where!r} does not fit: {difference({name}, list(state), [])}")
    shape = tuple(state[name].shape)
    if len(shape) != axes:
        raise InputError(f"{where!r} does not fit: {name} is {shape}, expected {axes} axes.")
    return shape


def count_blocks(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Number of blocks `prefix0.`, `prefix1.`, … in a state dict."""
    found = {int(m[1]) for key in state if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", key))}
    return len(found)


def rename_bert_keys(state: Mapping[str, torch.Tensor]) -> State:
    """Layer norms under their names of today: old files call weight gamma and bias beta."""
    return {re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", _without_beta(key)): value for key, value in state.items()}


def _without_beta(key: str) -> str:
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)


BERT_UNUSED = r"(^|\.)(embeddings\.(position_ids|token_type_ids)|pooler\.dense\.(weight|bias))$"
"""Keys of a BERT that its token features do not depend on."""


def bert_shape(state: Mapping[str, torch.Tensor], prefix: str, where: str) -> BertConfig:
    """The configuration of the BERT whose keys begin with `prefix`, from the shapes of its weights.

    Raises:
        InputError: there is none.
    """
    vocab_size, width = shape_of(state, f"{prefix}embeddings.word_embeddings.weight", where)
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_blocks(state, f"{prefix}encoder.layer."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        intermediate_size=shape_of(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", where)[0],
        max_position_embeddings=shape_of(state, f"{prefix}embeddings.position_embeddings.weight", where)[0],
        type_vocab_size=shape_of(state, f"{prefix}embeddings.token_type_embeddings.weight", where)[0],
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, words: int, where: str) -> None:
    """Check that a tokenizer's ids are rows of the checkpoint's word embeddings.

    Raises:
        InputError: it has more words.
    """
    if len(tokenizer) > words:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} words, but {where!r} has embeddings of {words}; give the tokenizer "
            "that the model was trained with."
        )


def assemble(
    config: DualEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    text: PretrainedConfig | None,
    image: PretrainedConfig | None = None,
) -> DualEncoder:
    """A model to be filled from a checkpoint, without any starting weights; in eval mode.

    Args:
        config: its settings.
        tokenizer: its tokenizer.
        text: architecture of a text tower of transformers.
        image: architecture of an image tower of transformers.
    """
    image_tower = ImageTower(config.image, architecture=image)
    text_tower = TextTower(config.text, architecture=text, load_weights=False, vocab_size=len(tokenizer))
    return DualEncoder(config, tokenizer, image_tower, text_tower).eval()
