"""The originals' backbone files: the detector's two halves, and a plain ResNet(Xt)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from small_originals import Trunk, shaken

from xmatch.errors import InputError
from xmatch.models.towers.image import ImageTower, ImageTowerConfig


def tower(name: str, weights: Path) -> ImageTower:
    return ImageTower(ImageTowerConfig(kind="updown", name=name, weights=str(weights), output="grid", image_size=64))


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    torch.manual_seed(5)
    return shaken(Trunk())


def test_the_detectors_halves(tmp_path: Path, trunk: Trunk) -> None:
    path = tmp_path / "original_updown_backbone.pth"
    torch.save({"base": trunk.base.state_dict(), "top": trunk.top.state_dict()}, path)
    assert "0.0.conv1.weight" in trunk.top.state_dict()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tower("resnet50/caffe", path)(pixels), trunk(pixels), atol=1e-5, rtol=1e-5)
    torch.save({"base": trunk.base.state_dict(), "top": {}}, path)
    with pytest.raises(InputError, match=r"backbone.pth \(top\)': expected a state dict.*an empty one"):
        tower("resnet50/caffe", path)
    torch.save({"base": trunk.base.state_dict(), "top": {"1.0.conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"missing: layer4.*, ….*1 unexpected: 1.0.conv1.weight"):
        tower("resnet50/caffe", path)
    torch.save(trunk.resnet.state_dict(), path)
    with pytest.raises(InputError, match=r"does not fit: .*missing.*Give the ResNet.*image.name"):
        tower("resnet101/caffe", path)


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnext101_32x8d", marks=pytest.mark.slow)])
def test_a_plain_state_dict_with_its_classifier(tmp_path: Path, name: str) -> None:
    """The WSL ResNeXts have torchvision's keys."""
    torch.manual_seed(6)
    net = shaken(getattr(torchvision.models, name)())
    torch.save(torch.nn.DataParallel(net).state_dict(), tmp_path / "net.pth")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        grid = tower(f"{name}/torchvision", tmp_path / "net.pth")(pixels)
        net.fc = torch.nn.Identity()
        torch.testing.assert_close(grid.mean(1), net(pixels), atol=1e-5, rtol=1e-5)
