"""Backbones of timm: pooled features, pooled stages, or the grid of the last map."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn

from xmatch.errors import InputError
from xmatch.models.staging import opened
from xmatch.models.towers.weights import fill_backbone, read_checkpoint, seeded


def build(config: Any) -> nn.Module:
    """The backbone that `config.name` names, without its classifier.

    Raises:
        InputError: timm does not know the name, or the weights cannot be had.
    """
    place = opened(config.name)
    name = f"local-dir:{place}" if os.path.isdir(place) else place
    create: Callable[..., Any] = timm.create_model
    try:
        with seeded():
            backbone = create(name, pretrained=config.weights == "pretrained", scriptable=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"cannot make the image tower {config.name!r} with weights {config.weights!r}: {error}. Give a timm model "
            "name (see timm.list_models()) or a local folder, and weights 'pretrained', 'none' or a file."
        ) from error
    if config.weights not in ("pretrained", "none"):
        classifier = backbone.default_cfg.get("classifier", "fc")
        fill_backbone(backbone, read_checkpoint(config.weights), config.weights, classifier)
    backbone.reset_classifier(0)
    frozen: nn.Module = freeze_batch_norm_2d(backbone) if config.batch_norm == "constant" else backbone
    return frozen


def hub_name(name: str) -> str:
    """The hub repository with the weights of a model of timm; "" where timm fetches them from elsewhere."""
    prefix, _, rest = name.partition(":")
    if prefix in ("hf-hub", "hf_hub"):
        return rest
    known = None if prefix == "local-dir" else timm.models.get_pretrained_cfg(name)
    return str(known.hf_hub_id or "") if known else ""


def features(backbone: Any, pixels: torch.Tensor, config: Any) -> torch.Tensor:
    """(B, 3, H, W) to (B, C) pooled, stages behind the final features, or to the grid (B, cells, C)."""
    if config.output == "grid":
        grid: torch.Tensor = backbone.forward_features(pixels)
        return grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid
    if config.stages == 0:
        pooled: torch.Tensor = backbone(pixels)
        return pooled
    last, stages = backbone.forward_intermediates(pixels, indices=config.stages)
    final = backbone.forward_head(last, pre_logits=True)
    return torch.cat([final, *(stage.mean((2, 3)) for stage in stages)], dim=1)
