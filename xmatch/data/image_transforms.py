"""From a decoded image to the pixels a tower sees, as each of the published models does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

DETECTOR_MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""Channel means of the bottom-up-attention detector's input, blue first, pixels 0 … 255 (golden image_preprocess)."""


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Size, crop and normalisation of the pixels."""

    image_size: int = 224
    """Pixels on a side of what the tower sees."""
    resize: int = 256
    """Pixels of the shorter side before the centre crop (`crop=center`)."""
    crop: Literal["center", "stretch"] = "center"
    """`center`: resize the shorter side, cut the centre; training crops at random (Vokenization, CLIP). `stretch`:
    the whole image, stretched to the square; training crops at 0.6 … 1 of both sides (VSE-infinity)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pixels are resampled."""
    min_crop_area: float = 0.08
    """Smallest share of the area that a random crop of `crop=center` keeps."""
    pixels: Literal["unit_rgb", "detector_bgr"] = "unit_rgb"
    """`unit_rgb`: 0 … 1, red first, mean and std below. `detector_bgr`: 0 … 255, blue first, minus the detector's
    means."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means taken from pixels in 0 … 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel deviations."""


class ScaleCrop:
    """One share of 0.6 … 1 of both sides at a random place, stretched to a square (VSE-infinity)."""

    def __init__(self, size: int, mode: transforms.InterpolationMode) -> None:
        self.size, self.mode = size, mode

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop with torch's current generator."""
        share = 0.6 + 0.4 * float(torch.rand(()))
        width, height = max(1, int(image.width * share)), max(1, int(image.height * share))
        left = int(torch.randint(image.width - width + 1, ()))
        top = int(torch.randint(image.height - height + 1, ()))
        cut: Image.Image = functional.resized_crop(image, top, left, height, width, [self.size] * 2, self.mode)
        return cut


def detector_pixels(rgb: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in 0 … 1, red first, to blue first in 0 … 255 minus the detector's means."""
    return rgb.flip(0) * 255.0 - torch.tensor(DETECTOR_MEAN_BGR)[:, None, None]


def build_transform(config: TransformConfig, *, train: bool) -> Callable[[Image.Image], torch.Tensor]:
    """From an RGB image to (3, H, W) float32: a random crop and mirror for training, else the fixed view."""
    size, mode = config.image_size, transforms.InterpolationMode(config.interpolation)
    steps: list[Any]
    if config.crop == "stretch":
        steps = [ScaleCrop(size, mode)] if train else [transforms.Resize([size, size], mode)]
    elif train:
        area = (config.min_crop_area, 1.0)
        steps = [transforms.RandomResizedCrop(size, scale=area, interpolation=mode)]
    else:
        steps = [transforms.Resize(max(config.resize, size), mode), transforms.CenterCrop(size)]
    if train:
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.ToTensor())
    normal = transforms.Normalize(config.mean, config.std)
    steps.append(transforms.Lambda(detector_pixels) if config.pixels == "detector_bgr" else normal)
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)
    return composed
