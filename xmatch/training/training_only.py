"""Weights that only training needs: beside the model in checkpoints, never in the model itself."""

from __future__ import annotations

import os

from safetensors.torch import load_file, save_file

from xmatch.errors import InputError
from xmatch.models.checkpoints import require_same_keys
from xmatch.models.dual_encoder import DualEncoder

FILE = "training_only.safetensors"


def save_training_only(model: DualEncoder, folder: str) -> None:
    """Write a model's training-only weights into a local folder; nothing where it has none."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.training_only.state_dict().items()}
    if state:
        save_file(state, os.path.join(folder, FILE), metadata={"format": "pt"})


def load_training_only(model: DualEncoder, folder: str) -> None:
    """Read what `save_training_only` wrote.

    Raises:
        InputError: the file is missing, broken, or of other modules.
    """
    own = model.training_only.state_dict()
    if not own:
        return
    path = os.path.join(folder, FILE)
    try:
        state = load_file(path)
    except Exception as error:
        raise InputError(f"{path!r} cannot be read as safetensors: {error}. Start the run anew.") from error
    require_same_keys(state, own, path)
    model.training_only.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})
