"""Pixels as the published models see them, against the originals' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import golden
from torchvision.transforms import InterpolationMode

from xmatch.data.image_transforms import ScaleCrop, TransformConfig, build_transform

GOLDEN = golden("image_preprocess")["normalisation"]


@pytest.mark.parametrize(("pixels", "name"), [("detector_bgr", "detector_bgr_minus_mean"), ("unit_rgb", "imagenet")])
def test_normalisation_is_the_originals(pixels: str, name: str) -> None:
    image = Image.fromarray(np.array(GOLDEN["input_HWC"], np.uint8))
    transform = build_transform(TransformConfig(image_size=2, crop="stretch", pixels=pixels), train=False)
    expected = torch.tensor(GOLDEN[name]).permute(2, 0, 1)
    torch.testing.assert_close(transform(image), expected, atol=2e-5, rtol=1e-4)


def test_the_fixed_views_have_the_published_sizes() -> None:
    image = Image.new("RGB", (90, 60))
    for crop, size in (("center", 24), ("stretch", 32)):
        pixels = build_transform(TransformConfig(image_size=size, resize=28, crop=crop), train=False)(image)
        assert pixels.shape == (3, size, size)


def test_the_whole_image_is_stretched_and_the_centre_is_cut() -> None:
    """A white frame on black is seen by the stretched view alone."""
    canvas = np.zeros((60, 90, 3), np.uint8)
    canvas[:, :8] = canvas[:, -8:] = 255
    image = Image.fromarray(canvas)
    plain = {"image_size": 30, "resize": 30, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    stretched = build_transform(TransformConfig(crop="stretch", **plain), train=False)(image)
    centre = build_transform(TransformConfig(crop="center", **plain), train=False)(image)
    assert stretched[:, :, 0].min() == 1.0
    assert centre.max() == 0.0


def test_training_crops_keep_six_to_ten_tenths_of_both_sides() -> None:
    """VSE-infinity: one share of both sides, so the aspect of the cut is the image's."""
    sizes: list[tuple[int, int, int, int]] = []
    crop, image = ScaleCrop(50, InterpolationMode.BILINEAR), Image.new("RGB", (200, 100))
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "xmatch.data.image_transforms.functional.resized_crop",
            lambda _, top, left, height, width, size, mode: sizes.append((top, left, height, width)),
        )
        for _ in range(300):
            crop(image)
    widths = np.array([width for *_, width in sizes])
    assert 120 <= widths.min() < 125
    assert 195 < widths.max() <= 200
    assert all(abs(width - 2 * height) <= 1 for _, _, height, width in sizes)
    assert all(top + height <= 100 and left + width <= 200 for top, left, height, width in sizes)


def test_a_training_view_follows_torchs_generator() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8))
    for crop in ("center", "stretch"):
        transform = build_transform(TransformConfig(image_size=16, crop=crop), train=True)
        views = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            views.append(transform(image))
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[0], views[2])
