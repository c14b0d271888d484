"""Files of tensors, read without running anything in them; and the starting weights of image backbones."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file

from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.staging import opened_file

State = dict[str, torch.Tensor]

RANDOM_WEIGHTS_SEED = 9595
"""Random towers are equal in every process, so that features computed in one fit the model built in another."""
WRAPPED = "module."
"""What DataParallel puts before every key."""
COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, which no forward pass reads; the only key that may be absent."""
SHOWN = 5
"""Differences named in a message."""


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers from the fixed seed within the block; torch's own generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        yield


def read_checkpoint(path: str, allowed: Sequence[type] = ()) -> Any:
    """What `torch.save` or safetensors wrote: tensors, plain values and containers, never code.

    Args:
        path: local file, URI or staged folder of one file.
        allowed: plain classes that the file may hold besides.

    Raises:
        InputError: it is not there, is a TorchScript archive, is damaged, or asks for any other class.
    """
    path = opened_file(path)
    local = files.local_copy(path)
    if not os.path.isfile(local):
        raise InputError(f"weights {path!r} do not exist; give a .pth, .pt or .safetensors file.")
    if path.endswith(".safetensors"):
        return _read_safetensors(local, path)
    if _is_torchscript(local):
        raise InputError(
            f"{path!r} is a TorchScript archive, which holds code beside the weights and is not opened. Where "
            "you trust it, convert it: "
            f"torch.save(torch.jit.load({path!r}, map_location='cpu').state_dict(), 'weights.pt')."
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(local, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path!r} cannot be read as tensors and plain values: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a file was refused, without torch's advice to allow what it asks for."""
    if "Detected pickle protocol" in str(error):
        return "it is a plain pickle, not a file of torch.save, and is refused."
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked is None:
        return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Copy it again."
    hint = "If it holds a whole pickled model, save its state_dict() instead, where you trust it."
    if asked[1] == "argparse.Namespace":
        hint = "Checkpoints of some originals hold one: is it of kind vse_infinity, vsrn or camera?"
    return f"it asks for {asked[1]}, which is refused. {hint}"


def _read_safetensors(local: str, path: str) -> State:
    try:
        state: State = load_file(local)
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
        found = type(value).__name__ if value or not isinstance(value, dict) else "an empty one"
        raise InputError(f"{where!r}: expected a state dict, a map from names to tensors; got {found}.")
    state: State = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            inner = [name for name in ("state_dict", "model") if name in value]
            hint = f" It holds {inner[0]!r}: is it a checkpoint of another kind?" if inner else ""
            raise InputError(
                f"{where!r}: expected a map from names to tensors, but {str(key)[:80]!r} is {type(tensor).__name__}."
                + hint
            )
        name = key.removeprefix(WRAPPED)
        if name in state:
            raise InputError(f"{where!r} holds {name!r} twice, with the prefix {WRAPPED!r} and without.")
        state[name] = tensor
    return state


def wrapped(state: Mapping[str, torch.Tensor]) -> State:
    """The same tensors under DataParallel's names."""
    return {WRAPPED + key: tensor for key, tensor in state.items()}


def difference(missing: Collection[str], unexpected: Collection[str], shapes: Sequence[str]) -> str:
    """Differences of two sets of keys, a sentence for each kind, each missing key with the nearest that is there."""
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


def require_same(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str, hint: str) -> None:
    """Check that a file's names and shapes are those of a model; BatchNorm's counters may be absent or more.

    Args:
        given: the file's; one number may have shape () or (1,).
        wanted: the model's, under the file's names.
        where: path, for messages.
        hint: what to try where they differ.

    Raises:
        InputError: they differ; lists the first differences of each kind.
    """
    missing = {key for key in wanted if key not in given and not key.endswith(COUNTER)}
    unexpected = {key for key in given if key not in wanted and not key.endswith(COUNTER)}
    wrong = [
        f"{key} is {tuple(given[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and _shape(given[key]) != _shape(value)
    ]
    if missing or unexpected or wrong:
        raise InputError(f"{where!r} does not fit: {difference(missing, unexpected, wrong)} {hint}".rstrip())


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a tensor, where (1,) is the same as ()."""
    return () if tensor.shape == (1,) else tuple(tensor.shape)


def fill_backbone(
    backbone: Any, state: Mapping[str, torch.Tensor], where: str, classifier: str | Sequence[str] = "fc"
) -> None:
    """Put a state dict into a backbone, strictly, but for the classifier, which a tower does not have.

    Args:
        backbone: changed in place; numbers become float32.
        state: names to tensors, with DataParallel's prefix or without.
        where: path, for messages.
        classifier: name of the classifier's module, or names of several.

    Raises:
        InputError: names or shapes differ; lists the differences.
    """
    heads = [classifier] if isinstance(classifier, str) else list(classifier)
    own = _without(backbone.state_dict(), heads)
    given = _without(plain_state(state, where), heads)
    require_same(given, own, where, f"Give the {type(backbone).__name__} that the weights are of (image.name).")
    kept = {key: value.to(own[key].dtype).reshape(own[key].shape) for key, value in given.items() if key in own}
    backbone.load_state_dict(kept, strict=False)


def _without(state: State, modules: Sequence[str]) -> State:
    return {key: value for key, value in state.items() if not any(f"{key}.".startswith(f"{m}.") for m in modules)}
