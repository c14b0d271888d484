"""Image towers: pixels to features; from timm, from transformers, or as the bottom-up-attention detector has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import PretrainedConfig

from xmatch.data.image_transforms import TransformConfig, build_transform
from xmatch.errors import InputError
from xmatch.models.towers import clip, timm_backbones, updown

STEM_NAMES = ("conv1", "layer1")
"""Parts that the original keeps frozen when it fine-tunes a ResNet (Vokenization, `--visn-finetune`)."""


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(TransformConfig):
    """An image backbone and how it is fed.

    The published towers of Vokenization are `resnext101_32x8d.tv_in1k`, pooled, frozen, at 224 pixels with ImageNet
    statistics.
    """

    kind: Literal["timm", "updown", "clip", "regions"] = "timm"
    """`timm`: any timm backbone. `updown`: a torchvision ResNet in the Caffe layout of the bottom-up-attention
    detector (VSE-infinity). `clip`: the image half of a CLIP or SigLIP of transformers. `regions`: no backbone, the
    features come ready made."""
    name: str = "resnext101_32x8d.tv_in1k"
    """Model name of the library that `kind` names, or a local folder with such a model."""
    weights: str = "pretrained"
    """`pretrained` (from the hub), `none` (random, from a fixed seed), or a state dict's path (.pth, .safetensors)."""
    output: Literal["pooled", "grid"] = "pooled"
    """`pooled`: one vector an image. `grid`: one vector a cell or patch, row by row, to be pooled by the model."""
    stages: int = 0
    """timm, pooled: the pooled outputs of the last n stages beside the final features."""
    width: int = 2048
    """Width of ready-made features (`regions`)."""
    trainable: Literal["none", "all_but_stem", "all"] = "none"
    """`none`: frozen and always in eval mode. `all_but_stem`: as Vokenization fine-tunes."""
    batch_norm: Literal["constant", "affine"] = "constant"
    """`constant`: BatchNorm is a fixed affine map (Vokenization). `affine`: its statistics are fixed, its scale and
    shift learn (VSE-infinity)."""

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        if self.kind == "regions" and (self.trainable != "none" or self.output != "grid"):
            raise InputError("image.kind=regions has no backbone: use trainable=none and output=grid with it.")
        if self.stages and (self.kind != "timm" or self.output != "pooled"):
            raise InputError("image.stages adds pooled stages to a timm tower; use it with kind=timm, output=pooled.")


class _Kind(NamedTuple):
    """How a kind of tower is made, and how it turns pixels into features."""

    build: Callable[[Any, PretrainedConfig | None], nn.Module]
    features: Callable[[Any, torch.Tensor, Any], torch.Tensor]


KINDS: dict[str, _Kind] = {
    "timm": _Kind(lambda config, _: timm_backbones.build(config), timm_backbones.features),
    "updown": _Kind(lambda config, _: updown.build(config), updown.features),
    "clip": _Kind(clip.build_image, clip.image_features),
    "regions": _Kind(lambda _, __: nn.Identity(), lambda _, features, __: features),
}


class ImageTower(nn.Module):
    """Pixels to features.

    BatchNorm never updates its statistics. A frozen tower stays in eval mode whatever `train()` is told, and keeps
    no gradients.

    Args:
        config: which backbone, and how it is fed.
        architecture: the configuration saved beside a model whose image tower transformers made.
    """

    def __init__(self, config: ImageTowerConfig, *, architecture: PretrainedConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone: Any = KINDS[config.kind].build(config, architecture)
        self.cells, self.width = self._measure()
        for name, parameter in self.backbone.named_parameters():
            stem = name.split(".")[0] in STEM_NAMES
            parameter.requires_grad_(config.trainable == "all" or (config.trainable == "all_but_stem" and not stem))
        self.train(self.training)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing in the tower learns."""
        return self.config.trainable == "none"

    @property
    def gives_sets(self) -> bool:
        """Whether an image is a set of vectors rather than one."""
        return self.config.output == "grid"

    def train(self, mode: bool = True) -> ImageTower:
        """Set train mode, except for a frozen tower and for BatchNorm, which never leave eval mode."""
        super().train(mode and not self.is_frozen)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
        return self

    def _measure(self) -> tuple[int, int]:
        """Cells of an image (0: not known, or one pooled vector) and width of a feature."""
        if self.config.kind == "regions":
            return 0, self.config.width
        self.backbone.eval()
        with torch.no_grad():
            size = self.config.image_size
            features = KINDS[self.config.kind].features(self.backbone, torch.zeros(1, 3, size, size), self.config)
        return (int(features.shape[1]) if features.ndim == 3 else 0), int(features.shape[-1])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            pixels: (B, 3, H, W) float32, normalised as `transform` does; features themselves for `regions`.

        Returns:
            (B, width) where the output is pooled; (B, cells, width), cells row by row, where it is a grid.
        """
        features = KINDS[self.config.kind].features
        if self.is_frozen:
            with torch.no_grad():
                return features(self.backbone, pixels, self.config).detach()
        return features(self.backbone, pixels, self.config)

    def transform(self, *, train: bool) -> Callable[[Image.Image], torch.Tensor]:
        """From an RGB image to (3, H, W).

        Raises:
            InputError: the tower takes ready-made features, not images.
        """
        if self.config.kind == "regions":
            raise InputError(
                "this model takes ready-made region features, not images; give it a features file or table of vectors."
            )
        return build_transform(self.config, train=train)
