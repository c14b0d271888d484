"""The halves of CLIP and SigLIP from transformers, before their projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPTextModel,
    CLIPVisionModel,
    PretrainedConfig,
    SiglipTextModel,
    SiglipVisionModel,
)

from xmatch.errors import InputError
from xmatch.models.staging import opened
from xmatch.models.towers.weights import seeded

IMAGE_HALVES: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
TEXT_HALVES: dict[str, Any] = {"clip": CLIPTextModel, "siglip": SiglipTextModel}
TEXT_TYPES = ("clip_text_model", "siglip_text_model")


def build_image(config: Any, architecture: PretrainedConfig | None) -> nn.Module:
    """The image half of the CLIP or SigLIP that `config.name` names, or of a saved configuration.

    Raises:
        InputError: the name is of another kind of model, or cannot be had.
    """
    if architecture is not None:
        saved: nn.Module = IMAGE_HALVES[architecture.model_type.split("_")[0]](architecture)
        return saved
    name = opened(config.name)
    whole = read_whole_config(name)
    half = IMAGE_HALVES[whole.model_type]
    if config.weights == "pretrained":
        loaded: nn.Module = half.from_pretrained(name)
        return loaded
    with seeded():
        made: nn.Module = half(whole.vision_config)
    return made


def image_features(backbone: Any, pixels: torch.Tensor, config: Any) -> torch.Tensor:
    """(B, 3, H, W) to the pooled output (B, C), or to all patch tokens (B, patches, C) without the class token."""
    output = backbone(pixel_values=pixels)
    if config.output == "pooled":
        pooled: torch.Tensor = output.pooler_output
        return pooled
    tokens: torch.Tensor = output.last_hidden_state
    has_class_token = backbone.config.model_type.startswith("clip")
    return tokens[:, 1:] if has_class_token else tokens


def build_text(name: str, whole: PretrainedConfig, load: bool) -> nn.Module:
    """The text half of the CLIP or SigLIP called `name`."""
    half = TEXT_HALVES[whole.model_type]
    made: nn.Module = half.from_pretrained(name) if load else half(whole.text_config)
    return made


def text_half_of(architecture: PretrainedConfig) -> nn.Module:
    """The text half of a saved configuration."""
    made: nn.Module = TEXT_HALVES[architecture.model_type.split("_")[0]](architecture)
    return made


def read_whole_config(name: str) -> PretrainedConfig:
    """The configuration of a CLIP or SigLIP by hub name or folder.

    Raises:
        InputError: it cannot be had, or is of another kind.
    """
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if found.model_type not in IMAGE_HALVES:
        raise InputError(
            f"{name!r} is a {found.model_type}, not one of {', '.join(IMAGE_HALVES)}; choose another image.kind."
        )
    return found
