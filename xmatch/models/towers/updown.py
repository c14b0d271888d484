"""ResNets in the Caffe layout of the bottom-up-attention detector, as VSE-infinity's grid models use them.

Against torchvision's: the stride of a block sits on its first 1 x 1 convolution, and the first pooling has no padding
but rounds its size up. With `layout: caffe` ImageNet weights load too, as in the original, though they were trained
in the other geometry; `name: resnet101/torchvision` keeps torchvision's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision import models

from xmatch.errors import InputError
from xmatch.models.towers.weights import State, fill_backbone, plain_state, read_checkpoint, seeded

RESNETS = {
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
    "resnet152": models.resnet152,
    "resnext101_32x8d": models.resnext101_32x8d,
}
LAYOUTS = ("caffe", "torchvision")
BASE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"}
TOP = {"0": "layer4"}
"""What stands at which place in the two halves of the detector's file."""


def build(config: Any) -> nn.Module:
    """A ResNet named `resnet101/caffe`, `resnext101_32x8d/torchvision` and so on; the layout defaults to Caffe's.

    Weights: `pretrained` (torchvision's first ImageNet weights, as the originals had), `none`, or a file: a plain state
    dict, or the detector's `original_updown_backbone.pth` with its two halves `base` and `top`.

    Raises:
        InputError: name or layout is unknown, or the weights do not fit.
    """
    name, _, layout = config.name.partition("/")
    layout = layout or "caffe"
    if name not in RESNETS or layout not in LAYOUTS:
        raise InputError(
            f"unknown backbone {config.name!r}; give one of {', '.join(RESNETS)}, followed by /caffe or /torchvision."
        )
    with seeded():
        backbone: nn.Module = RESNETS[name](weights="IMAGENET1K_V1" if config.weights == "pretrained" else None)
    if config.weights not in ("pretrained", "none"):
        fill_backbone(backbone, join_halves(read_checkpoint(config.weights), config.weights), config.weights)
    backbone.fc = nn.Identity()
    if layout == "caffe":
        to_caffe_layout(backbone)
    return backbone


def to_caffe_layout(backbone: nn.Module) -> None:
    """Move each block's stride to its first convolution, and pool without padding; in place."""
    setattr(backbone, "maxpool", nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True))  # noqa: B010
    for block in (module for module in backbone.modules() if isinstance(module, models.resnet.Bottleneck)):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def join_halves(content: Any, where: str) -> State:
    """A plain state dict, or the detector's file as one: `base` holds conv1 … layer3, `top` holds layer4.

    Both are `nn.Sequential`s, whose keys begin with a position: 4 of `base` is layer1, 0 of `top` is layer4.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(content, dict) or set(content) != {"base", "top"}:
        return plain_state(content, where)
    base, top = (plain_state(content[half], f"{where} ({half})") for half in ("base", "top"))
    joined = {_plain_name(key, BASE): value for key, value in base.items()}
    return joined | {_plain_name(key, TOP): value for key, value in top.items()}


def _plain_name(key: str, places: dict[str, str]) -> str:
    """A key of a trunk by position, as torchvision names it; named keys stay."""
    head, _, rest = key.partition(".")
    return f"{places[head]}.{rest}" if head in places else key


def features(backbone: Any, pixels: torch.Tensor, config: Any) -> torch.Tensor:
    """(B, 3, H, W) to the grid (B, cells, 2048), cells row by row, or its mean (B, 2048)."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(pixels))))
    x = backbone.layer4(backbone.layer3(backbone.layer2(backbone.layer1(x))))
    grid: torch.Tensor = x.flatten(2).transpose(1, 2)
    return grid if config.output == "grid" else grid.mean(1)
