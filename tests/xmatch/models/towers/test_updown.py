"""The trunk of VSE-infinity's grid models: its geometry, and which weights it asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import golden
from torchvision import models

from xmatch.errors import InputError
from xmatch.models.towers import updown
from xmatch.models.towers.image import ImageTowerConfig

GOLDEN = golden("image_preprocess")


def shape_of(name: str, size: int) -> list[int]:
    """Size of the last map, without computing it."""
    with torch.device("meta"):
        trunk: Any = updown.RESNETS[name.split("/")[0]](weights=None)
        if name.endswith("/caffe"):
            updown.to_caffe_layout(trunk)
        trunk.fc = torch.nn.Identity()
        features = updown.features(trunk.eval(), torch.zeros(1, 3, size, size), ImageTowerConfig(output="grid"))
    side = round(features.shape[1] ** 0.5)
    return [features.shape[0], features.shape[2], side, features.shape[1] // side]


@pytest.mark.parametrize(("size", "shape"), GOLDEN["caffe_style_backbone_output_shapes"].items())
def test_the_caffe_layout_has_the_originals_map(size: str, shape: list[int]) -> None:
    assert shape_of("resnet101/caffe", int(size)) == shape


@pytest.mark.parametrize(("size", "shape"), GOLDEN["imagenet_style_backbone_output_shapes_by_formula"].items())
def test_torchvisions_layout_has_the_originals_map(size: str, shape: list[int]) -> None:
    assert shape_of("resnext101_32x8d/torchvision", int(size)) == shape


def test_pretrained_means_the_weights_that_the_originals_had(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def recorded(*, weights: Any) -> Any:
        asked.append(weights)
        return models.resnet50(weights=None)

    monkeypatch.setitem(updown.RESNETS, "resnet152", recorded)
    updown.build(ImageTowerConfig(kind="updown", name="resnet152/caffe", weights="pretrained"))
    assert asked == ["IMAGENET1K_V1"]
    for name in ("resnet50", "resnet101", "resnet152", "resnext101_32x8d"):
        assert "IMAGENET1K_V1" in {entry.name for entry in models.get_model_weights(name)}


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(InputError, match="/caffe or /torchvision"):
        updown.build(ImageTowerConfig(kind="updown", name="resnet101/tensorflow", weights="none"))
