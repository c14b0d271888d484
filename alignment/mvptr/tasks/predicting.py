"""Scores of samples by a task's model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from alignment.mvptr.heads import TaskModel
from alignment.mvptr.pair_inputs import PairInputs

BLOCK = 64
"""Samples in one forward pass."""


@torch.inference_mode()
def task_scores(model: TaskModel, inputs: PairInputs, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """What the head says of samples: (B, A) logits of answers or classes, or (B, R) scores of regions.

    Args:
        model: in eval mode, on its device.
        inputs: samples.
        indices: (B,) of them.
    """
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(indices), BLOCK):
        found.append(model(inputs.batch(indices[start : start + BLOCK]).to(device)).float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)
