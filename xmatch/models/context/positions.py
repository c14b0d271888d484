"""Gates by where regions lie in their images (CAMERA; Qu et al. 2020, section 3.1; golden `camera.json`, position)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from xmatch.data.region_places import POSITION_NUMBERS, position_code
from xmatch.errors import InputError


def grid_positions(cells: int) -> npt.NDArray[np.float32]:
    """The six numbers of the cells of a square grid over a square image, row by row; float32 of shape (cells, 6).

    Raises:
        InputError: so many cells are no square.
    """
    side = math.isqrt(cells)
    if not cells or side * side != cells:
        raise InputError(
            f"the {cells} cells of this image tower are no square grid, so nobody knows where each lies; use a tower "
            "with a square grid, or a context without positions."
        )
    row, column = np.divmod(np.arange(cells), side)
    boxes = np.stack([column, row, column + 1, row + 1], axis=1)
    return position_code(boxes, np.array([side, side]))


class PositionGate(nn.Module):
    """Six numbers to a gate between 0 and 1 for each dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(POSITION_NUMBERS, dim)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(B, K, 6) to (B, K, dim)."""
        return torch.sigmoid(self.proj(positions))
