"""A saved dual encoder: config.json, text_config.json, model.safetensors and the tokenizer's files in one folder.

A tower of transformers has its own configuration beside it: text_config.json, image_config.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import types
import typing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.staging import local_folder
from xmatch.models.towers.image import ImageTowerConfig

CONFIG, WEIGHTS, ARCHITECTURE = "config.json", "model.safetensors", "text_config.json"
IMAGE_ARCHITECTURE = "image_config.json"
FORMAT_VERSION = 1
TRAINING_ONLY = "training_only."
"""How the names of weights begin that only training needs and that no saved model has."""
T = TypeVar("T")


class Architectures(NamedTuple):
    """The configurations of towers that transformers made; None for others."""

    text: PretrainedConfig | None
    image: PretrainedConfig | None


def resolve(folder_or_hub_name: str, **hub: Any) -> str:
    """The local folder of a saved dual encoder: itself, or the local copy of a URI, staged folder or hub repository.

    Raises:
        InputError: it is not there, or is no dual encoder.
    """
    looks_local = "/" not in folder_or_hub_name and not os.path.isdir(folder_or_hub_name)
    if looks_local:
        raise InputError(f"model folder {folder_or_hub_name!r} does not exist; give a saved dual encoder's folder.")
    folder = local_folder(folder_or_hub_name, "model", **hub)
    if not os.path.exists(os.path.join(folder, CONFIG)):
        raise InputError(f"{folder_or_hub_name!r} has no {CONFIG}: expected a folder of a saved dual encoder.")
    return folder


def without_weights(config: ImageTowerConfig) -> ImageTowerConfig:
    """The same tower, to be filled from a checkpoint instead of from its own weights."""
    return dataclasses.replace(config, weights="none")


def save(
    folder: str,
    config: Any,
    state: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    architectures: Architectures,
    dtype: str,
    card: str,
) -> None:
    """Write every file of a saved model; the weights last, so that a folder with weights is complete."""
    if files.is_uri(folder):
        with tempfile.TemporaryDirectory() as local:
            save(local, config, state, tokenizer, architectures, dtype, card)
            files.copy_folder(local, folder)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    kind = {"float32": torch.float32, "float16": torch.float16}[dtype]
    settings = {"format": FORMAT_VERSION, **dataclasses.asdict(config)}
    files.write_json(os.path.join(folder, CONFIG), settings)
    for name, architecture in ((ARCHITECTURE, architectures.text), (IMAGE_ARCHITECTURE, architectures.image)):
        if architecture is not None:
            files.write_json(os.path.join(folder, name), architecture.to_dict())
    tokenizer.save_pretrained(folder)
    if card:
        Path(folder, "README.md").write_text(card, encoding="utf-8")
    tensors = {
        name: (value.to(kind) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
    }
    temporary = os.path.join(folder, f"{WEIGHTS}{files.TEMPORARY_MARK}{os.getpid()}")
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, os.path.join(folder, WEIGHTS))


def plain(config: Any) -> Any:
    """A configuration as plain values, as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_config(folder: str, kind: type[T]) -> T:
    """The typed configuration saved in a folder.

    Raises:
        InputError: it is missing, of a later format, or names a setting we do not know.
    """
    path = os.path.join(folder, CONFIG)
    values = files.read_json(path)
    if not isinstance(values, dict) or "image" not in values or values.pop("format", 0) != FORMAT_VERSION:
        raise InputError(f"{path!r} is no dual encoder's configuration of format {FORMAT_VERSION}.")
    return _typed(kind, values, path)


def _typed(kind: type[T], values: Mapping[str, Any], path: str) -> T:
    """A dataclass from plain values, nested ones included; lists become tuples where the field is one."""
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise InputError(f"{path!r} holds {sorted(unknown)[0]!r}, which {kind.__name__} does not know.")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _typed(hint, value, path)
        elif typing.get_origin(hint) is tuple or (isinstance(hint, types.UnionType) and isinstance(value, list)):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved in a folder."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder!r} has no tokenizer that can be read: {str(error).splitlines()[:1]}") from error
    return tokenizer


def read_architectures(folder: str) -> Architectures:
    """The towers' own configurations saved in a folder."""
    return Architectures(*(_read_architecture(os.path.join(folder, n)) for n in (ARCHITECTURE, IMAGE_ARCHITECTURE)))


def _read_architecture(path: str) -> PretrainedConfig | None:
    if not os.path.exists(path):
        return None
    values = files.read_json(path)
    architecture: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
    return architecture


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that belong to the model itself."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(TRAINING_ONLY)}


def load_state(model: nn.Module, folder: str) -> None:
    """Load a folder's weights into a model, strictly.

    Raises:
        InputError: the file is missing or broken, or names and shapes differ; says which.
    """
    path = os.path.join(folder, WEIGHTS)
    try:
        state = load_file(path)
    except Exception as error:
        raise InputError(f"{path!r} cannot be read as safetensors: {error}. Copy the model again.") from error
    own = own_state(model)
    require_same_keys(state, own, path)
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=False)


def require_same_keys(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], where: str) -> None:
    """Check that names and shapes agree.

    Raises:
        InputError: they differ; lists the first of each kind.
    """
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{n}: {tuple(state[n].shape)} for {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or unexpected or shapes:
        raise InputError(
            f"{where!r} does not fit the model: {len(missing)} weights missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}. Check towers and heads."
        )


class WeightCounts(NamedTuple):
    """Numbers in a saved model: those that every input is multiplied with in each tower, and all of them."""

    text: int
    image: int
    total: int


def weight_counts(folder: str) -> WeightCounts:
    """Count a saved model's numbers from the head of its file; embeddings are looked up, not multiplied with.

    Raises:
        InputError: the file is missing or broken.
    """
    path = os.path.join(resolve(folder), WEIGHTS)
    counts: Counter[str] = Counter()
    try:
        with safe_open(path, framework="pt") as store:
            for name in store.keys():
                numbers = math.prod(store.get_slice(name).get_shape())
                counts["total"] += numbers
                if "embeddings" not in name:
                    counts[name.split("_")[0]] += numbers
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path!r} is not a whole file of weights: {error}. Save the model again.") from error
    return WeightCounts(counts["text"], counts["image"], counts["total"])


def model_hash(folder: str) -> str:
    """SHA-256 over the files that decide what a saved model computes."""
    folder = resolve(folder)
    digest = hashlib.sha256()
    for name in (CONFIG, ARCHITECTURE, IMAGE_ARCHITECTURE, WEIGHTS, "tokenizer.json"):
        path = os.path.join(folder, name)
        digest.update(json.dumps([name, files.sha256(path) if os.path.exists(path) else None]).encode())
    return digest.hexdigest()
