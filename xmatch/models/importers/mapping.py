"""What every importer shares: reading a file of tensors safely, and moving them between two ways to name them.

A map is a list of pairs (ours, theirs) of key beginnings; the first that fits counts. What no pair names is ours alone
and keeps its starting value.
"""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, PretrainedConfig, PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.towers.image import ImageTower
from xmatch.models.towers.text import TextTower

State = dict[str, torch.Tensor]
Renames = Sequence[tuple[str, str]]

WRAPPED = "module."
"""What DataParallel puts before every key."""
HEAD_WIDTH = 64
"""Width of an attention head in every BERT and CLIP that was published."""
SHOWN = 5
"""Differences named in a message."""


def read_checkpoint(path: str, allowed: Sequence[type] = ()) -> Any:
    """What `torch.save` or safetensors wrote: tensors, plain values and containers, never code.

    Args:
        path: local file.
        allowed: plain classes that the file may hold besides.

    Raises:
        InputError: it is not there, is a TorchScript archive, is damaged, or asks for any other class.
    """
    if not os.path.isfile(path):
        raise InputError(f"checkpoint {path!r} does not exist; give the original's file.")
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    if _is_torchscript(path):
        raise InputError(
            f"{path!r} is a TorchScript archive, which holds code beside the weights and is not opened. Where "
            "you trust it, convert it: "
            f"torch.save(torch.jit.load({path!r}, map_location='cpu').state_dict(), 'weights.pt')."
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).split("\n")[0])
        raise InputError(
            f"{path!r} cannot be read as tensors and plain values: {reason.strip()} If it holds a whole pickled model, "
            "save its state_dict() instead, where you trust it."
        ) from error


def _read_safetensors(path: str) -> State:
    try:
        state: State = load_file(path)
    except Exception as error:
        raise InputError(f"{path!r} cannot be read as safetensors: {error}. Copy it again.") from error
    return state


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())


def plain_state(value: Any, where: str) -> State:
    """A state dict without DataParallel's prefix.

    Raises:
        InputError: it is no map from names to tensors, or a name occurs with the prefix and without.
    """
    if not isinstance(value, dict) or not value:
        raise InputError(f"{where!r}: expected a state dict, a map from names to tensors; got {type(value).__name__}.")
    state: State = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{where!r}: expected a map from names to tensors, but {str(key)[:80]!r} is {type(tensor).__name__}."
            )
        name = key.removeprefix(WRAPPED)
        if name in state:
            raise InputError(f"{where!r} holds {name!r} twice, with the prefix {WRAPPED!r} and without.")
        state[name] = tensor
    return state


def original_name(key: str, renames: Renames) -> str | None:
    """The original's name of one of our keys; None where it has none."""
    for ours, theirs in renames:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    return None


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], renames: Renames, where: str, unused: str = "") -> None:
    """Put an original's tensors into a model, strictly; floating-point numbers become float32.

    Args:
        model: ours; what the map does not name stays as it is.
        state: under the original's names.
        renames: the map.
        where: path, for messages.
        unused: pattern of the original's keys that it stores and never reads.

    Raises:
        InputError: names or shapes differ; lists the differences, each missing key with the nearest that is there.
    """
    own = model.state_dict()
    names = {key: name for key in own if (name := original_name(key, renames)) is not None}
    required = {name for name in names.values() if not name.endswith("num_batches_tracked")}
    ignored = {key for key in state if unused and re.search(unused, key)} | {
        key for key in state if key.endswith("num_batches_tracked")
    }
    shapes = {
        name: f"{name} is {tuple(state[name].shape)}, expected {tuple(own[key].shape)}"
        for key, name in names.items()
        if name in state and _shape(state[name]) != _shape(own[key])
    }
    missing = required - set(state)
    unexpected = set(state) - set(names.values()) - ignored
    if missing or unexpected or shapes:
        raise InputError(f"{where!r} does not fit: {difference(missing, unexpected, list(shapes.values()))}")
    found = {
        key: state[name].to(own[key].dtype).reshape(own[key].shape) for key, name in names.items() if name in state
    }
    model.load_state_dict(found, strict=False)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape; () and (1,), both one number, count as equal."""
    return () if tensor.shape == (1,) else tuple(tensor.shape)


def difference(missing: Collection[str], unexpected: Collection[str], shapes: Sequence[str]) -> str:
    """Differences of two sets of keys in a sentence for each kind."""
    parts = []
    if missing:
        shown = []
        for name in sorted(missing)[:SHOWN]:
            near = difflib.get_close_matches(name, list(unexpected), n=1, cutoff=0.6)
            shown.append(f"{name} (nearest there: {near[0]})" if near else name)
        parts.append(f"{len(missing)} missing: {_list(shown, len(missing))}.")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_list(sorted(unexpected)[:SHOWN], len(unexpected))}.")
    if shapes:
        parts.append(f"{len(shapes)} of another shape: {_list(list(shapes)[:SHOWN], len(shapes))}.")
    return " ".join(parts)


def _list(shown: Sequence[str], total: int) -> str:
    return ", ".join(shown) + (", …" if total > len(shown) else "")


def collect(model: nn.Module, renames: Renames) -> State:
    """A model's tensors under the original's names, on the CPU; what is ours alone is left out."""
    found: State = {}
    for key, tensor in model.state_dict().items():
        name = original_name(key, renames)
        if name is not None:
            found[name] = tensor.detach().cpu().clone()
    return found


def wrapped(state: Mapping[str, torch.Tensor]) -> State:
    """The same tensors under DataParallel's names."""
    return {WRAPPED + key: tensor for key, tensor in state.items()}


def shape_of(state: Mapping[str, torch.Tensor], name: str, where: str) -> tuple[int, ...]:
    """Shape of a tensor that decides what model a file holds.

    Raises:
        InputError: it is not there; names the nearest that is.
    """
    if name not in state:
        raise InputError(f"{where!r} does not fit: {difference({name}, list(state), [])}")
    return tuple(state[name].shape)


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
