"""Regions by a TorchScript program such as VinVL's detector, which runs code that came with its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor, resize

from alignment.mvptr.regions.detector_config import DetectorConfig, read_names
from alignment.mvptr.regions.selection import Candidates
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.models.staging import opened_file

VINVL_SIZES = (600, 1000)
"""Pixels of the shorter side, and of the longer at most, that VinVL's detector sees."""
VINVL_MEAN_BGR = (103.53, 116.28, 123.675)


class TorchScriptDetector:
    """A TorchScript program as MVPTR's tool calls VinVL's: pixels (1, 3, H, W) to boxes, labels and features.

    Pixels are 0 … 255, blue first, minus VinVL's means; boxes come in pixels of the resized image.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        if not config.trust_torchscript:
            raise InputError(f"{config.model!r} is not opened: trust_torchscript is not set.")
        load: Callable[..., Any] = torch.jit.load
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch would have it exported otherwise: too late here
                self.program = load(files.local_copy(opened_file(config.model)), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{config.model!r} is no TorchScript file: {str(error).splitlines()[0]}") from error
        self.place, self.device, self.width = config.model, device, config.width
        self.names = read_names(config.names)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        """The regions of each image, which the program has selected; all with score 1.

        Raises:
            InputError: it gives something else than boxes, labels and features of the width said.
        """
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> Candidates:
        width, height = vinvl_size(image.width, image.height)
        pixels = pil_to_tensor(resize(image, [height, width])).flip(0).float()
        pixels -= torch.tensor(VINVL_MEAN_BGR)[:, None, None]
        boxes, labels, features = (part[0].cpu() for part in self.program(pixels[None].to(self.device)))
        if boxes.shape != (len(labels), 4) or features.shape != (len(labels), self.width):
            raise InputError(
                f"{self.place!r} gives {len(labels)} labels, boxes of {tuple(boxes.shape)} and features of "
                f"{tuple(features.shape)}; expected features {self.width} wide (detector.width)."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise InputError(f"{self.place!r} finds class {int(labels.max())}, but there are {len(self.names)} names.")
        scale = torch.tensor([image.width / width, image.height / height] * 2)
        own = clip_boxes_to_image(boxes.float() * scale, (image.height, image.width))
        return Candidates(own, torch.ones(len(labels)), labels.long(), features.float())


def vinvl_size(width: int, height: int) -> tuple[int, int]:
    """Width and height to which VinVL's detector has an image resized: 600 x 800 for 300 x 400."""
    short, most = VINVL_SIZES
    low, high = min(width, height), max(width, height)
    if high / low * short > most:
        short = round(most * low / high)
    return (short, int(short * height / width)) if width < height else (int(short * width / height), short)
