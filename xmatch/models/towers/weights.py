"""Starting weights of image backbones: from a fixed seed, or from a file of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file

from xmatch.errors import InputError

RANDOM_WEIGHTS_SEED = 9595
"""Random towers are equal in every process, so that features computed in one fit the model built in another."""


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers from the fixed seed within the block; torch's own generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        yield


def read_state(path: str) -> dict[str, Any]:
    """A file of tensors, `.safetensors` or anything `torch.load` reads with `weights_only=True`.

    Raises:
        InputError: it is not there, or holds more than tensors and plain values.
    """
    try:
        state: dict[str, Any] = load_file(path) if path.endswith(".safetensors") else _load_plain(path)
    except FileNotFoundError as error:
        raise InputError(f"weights {path!r} do not exist; give a .pth or .safetensors file.") from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"weights {path!r} cannot be read as a plain state dict: {reason}.") from error
    return state


def _load_plain(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def load_backbone_weights(backbone: Any, path: str, classifier: str) -> None:
    """Load a state dict strictly, but for the classifier, which a tower does not have.

    Raises:
        InputError: names or shapes differ.
    """
    fill_backbone(backbone, read_state(path), path, classifier)


def fill_backbone(backbone: Any, state: Mapping[str, torch.Tensor], where: str, classifier: str = "fc") -> None:
    """Put a state dict into a backbone, strictly, but for the classifier."""
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    kept = {key: value for key, value in floats.items() if not key.startswith(classifier)}
    try:
        result = backbone.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(f"{where!r} does not fit {type(backbone).__name__}: {' '.join(lines[1:3]).strip()}") from error
    missing = [k for k in result.missing_keys if not k.startswith(classifier) and not k.endswith("batches_tracked")]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{where!r} does not fit {type(backbone).__name__}: missing {missing[:3]} ({len(missing)} in all), "
            f"unexpected {result.unexpected_keys[:3]} ({len(result.unexpected_keys)} in all)."
        )
