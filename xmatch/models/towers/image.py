"""Image towers: any timm backbone, its pooled features, frozen or partly trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torchvision import transforms

from xmatch.errors import InputError

STEM_NAMES = ("conv1", "layer1")
"""Parts that the original keeps frozen when it fine-tunes a ResNet (Vokenization, `--visn-finetune`)."""

RANDOM_WEIGHTS_SEED = 9595
"""Random towers are equal in every process, so that features computed in one fit the model built in another."""


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """An image backbone and how it is fed.

    The published towers are `resnext101_32x8d.tv_in1k`, pooled, frozen, at 224 pixels with ImageNet statistics.
    """

    name: str = "resnext101_32x8d.tv_in1k"
    """timm model name, or a local folder with a timm model."""
    weights: str = "pretrained"
    """`pretrained` (from the hub), `none` (random, from a fixed seed), or a state dict's path (.pth, .safetensors)."""
    stages: int = 0
    """0: the pooled final features. n: the pooled outputs of the last n stages beside them."""
    trainable: Literal["none", "all_but_stem", "all"] = "none"
    """`none`: frozen and always in eval mode. `all_but_stem`: as the original fine-tunes."""
    image_size: int = 224
    """Pixels on a side of what the tower sees."""
    resize: int = 256
    """Pixels of the shorter side before the centre crop."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means taken from pixels in 0 … 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel deviations."""


class ImageTower(nn.Module):
    """Pixels to pooled features.

    Every BatchNorm is replaced by its frozen affine form, as in the original. A frozen tower stays in eval mode
    whatever `train()` is told, and keeps no gradients.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        backbone = _build(config)
        backbone.reset_classifier(0)
        self.backbone: Any = freeze_batch_norm_2d(backbone)
        self.width: int = self._measure_width()
        for name, parameter in self.backbone.named_parameters():
            stem = name.split(".")[0] in STEM_NAMES
            parameter.requires_grad_(config.trainable == "all" or (config.trainable == "all_but_stem" and not stem))
        self.train(self.training)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing in the tower learns."""
        return self.config.trainable == "none"

    def train(self, mode: bool = True) -> ImageTower:
        """Set train mode, except for a frozen tower, which never leaves eval mode."""
        super().train(mode and not self.is_frozen)
        return self

    def _measure_width(self) -> int:
        self.backbone.eval()
        with torch.no_grad():
            return int(self._pooled(torch.zeros(1, 3, self.config.image_size, self.config.image_size)).shape[1])

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.config.stages == 0:
            pooled: torch.Tensor = self.backbone(pixels)
            return pooled
        last, stages = self.backbone.forward_intermediates(pixels, indices=self.config.stages)
        final = self.backbone.forward_head(last, pre_logits=True)
        return torch.cat([final, *(stage.mean((2, 3)) for stage in stages)], dim=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            pixels: (B, 3, H, W) float32, normalised as `transform` does.

        Returns:
            (B, width): final pooled features, followed by the pooled stages, early to late.
        """
        if self.is_frozen:
            with torch.no_grad():
                return self._pooled(pixels).detach()
        return self._pooled(pixels)

    def transform(self, *, train: bool) -> Callable[[Image.Image], torch.Tensor]:
        """From an RGB image to (3, H, W): random crop and mirror for training, else resize and centre crop."""
        size = self.config.image_size
        if train:
            steps: list[Any] = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            steps = [transforms.Resize(self.config.resize), transforms.CenterCrop(size)]
        steps += [transforms.ToTensor(), transforms.Normalize(self.config.mean, self.config.std)]
        composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(steps)
        return composed


def _build(config: ImageTowerConfig) -> Any:
    name = f"local-dir:{config.name}" if os.path.isdir(config.name) else config.name
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_WEIGHTS_SEED)
            backbone: Any = timm.create_model(name, pretrained=config.weights == "pretrained", scriptable=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"cannot make the image tower {config.name!r} with weights {config.weights!r}: {error}. Give a timm model "
            "name (see timm.list_models()) or a local folder, and weights 'pretrained', 'none' or a file."
        ) from error
    if config.weights not in ("pretrained", "none"):
        _load_weights(backbone, config.weights)
    return backbone


def _load_weights(backbone: Any, path: str) -> None:
    """Load a state dict strictly, but for the classifier, which a tower does not have."""
    try:
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"image tower weights {path!r} do not exist; give a .pth or .safetensors file.") from error
    except Exception as error:
        raise InputError(f"image tower weights {path!r} cannot be read as a plain state dict: {error}.") from error
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    classifier = {name for name in state if name.startswith(backbone.default_cfg.get("classifier", "fc"))}
    result = backbone.load_state_dict({k: v for k, v in state.items() if k not in classifier}, strict=False)
    missing = [key for key in result.missing_keys if not key.startswith(backbone.default_cfg.get("classifier", "fc"))]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{path!r} does not fit {type(backbone).__name__}: missing {missing[:3]} ({len(missing)} in all), "
            f"unexpected {result.unexpected_keys[:3]} ({len(result.unexpected_keys)} in all)."
        )
