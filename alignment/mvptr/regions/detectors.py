"""Detectors of regions by name: torchvision's Faster R-CNN, the DETR family of transformers, a grid, TorchScript.

Each gives candidates with a vector and a class; selection.py says which become regions. Nothing is downloaded but
models by hub name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from alignment.mvptr.regions.detector_config import DetectorConfig, RegionDetector
from alignment.mvptr.regions.grid_detector import GridDetector
from alignment.mvptr.regions.torchscript_detector import TorchScriptDetector
from alignment.mvptr.regions.torchvision_detector import load_torchvision
from alignment.mvptr.regions.transformers_detector import TransformersDetector
from xmatch.embedding import pick_device
from xmatch.errors import InputError

DETECTORS: dict[str, Callable[[DetectorConfig, torch.device], RegionDetector]] = {
    "torchvision": load_torchvision,
    "transformers": TransformersDetector,
    "grid": GridDetector,
    "torchscript": TorchScriptDetector,
}


def load_detector(config: DetectorConfig, device: str = "auto") -> RegionDetector:
    """The detector of a configuration.

    Raises:
        InputError: it is not known, or its files are not there or do not fit.
    """
    if not config.model:
        raise InputError("--detector.model names what finds regions; it is empty.")
    return DETECTORS[config.kind](config, pick_device(device))
