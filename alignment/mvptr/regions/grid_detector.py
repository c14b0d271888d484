"""Regions without a detector: the cells of an image tower's last map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image

from alignment.mvptr.regions.detector_config import DetectorConfig
from alignment.mvptr.regions.selection import Candidates
from xmatch.errors import InputError
from xmatch.models.towers.image import ImageTower, ImageTowerConfig


class GridDetector:
    """The cells of an image tower's last map, averaged to a square grid; regions without names.

    Raises:
        InputError: there is no such tower, or its cells are no square.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        self.tower = ImageTower(grid_tower(config)).to(device).eval()
        self.device, self.cells, self.width, self.names = device, config.cells, self.tower.width, ("",)
        self.prefix = int(getattr(self.tower.backbone, "num_prefix_tokens", 0))
        self.side = math.isqrt(self.tower.cells - self.prefix)
        if self.side**2 != self.tower.cells - self.prefix or self.side < 1:
            raise InputError(f"the tower {config.model!r} has {self.tower.cells} cells, which are no square.")
        edges = torch.linspace(0, 1, self.cells + 1)
        rows, columns = torch.meshgrid(torch.arange(self.cells), torch.arange(self.cells), indexing="ij")
        corners = (edges[columns], edges[rows], edges[columns + 1], edges[rows + 1])
        self.shares = torch.stack(corners, -1).reshape(-1, 4)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        """The cells of each image, row by row, all with score 1."""
        transform = self.tower.transform(train=False)
        features = self.tower(torch.stack([transform(image) for image in images]).to(self.device))
        maps = features[:, self.prefix :].transpose(1, 2).unflatten(2, (self.side, self.side))
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, self.cells).flatten(2).transpose(1, 2).float().cpu()
        ones, zeros = torch.ones(len(self.shares)), torch.zeros(len(self.shares), dtype=torch.int64)
        return [
            Candidates(self.shares * torch.tensor([*image.size] * 2), ones, zeros, pooled[row])
            for row, image in enumerate(images)
        ]


def grid_tower(config: DetectorConfig) -> ImageTowerConfig:
    """The tower whose cells are regions: it sees the whole image, stretched."""
    return ImageTowerConfig(
        name=config.model,
        weights=config.weights or "pretrained",
        output="grid",
        crop="stretch",
        image_size=config.image_size,
    )
