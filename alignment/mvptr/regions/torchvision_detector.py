"""Regions by torchvision's Faster R-CNN: boxes of its proposals, and what its box head makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from PIL import Image
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from alignment.mvptr.regions.detector_config import DetectorConfig, read_names, weights_file
from alignment.mvptr.regions.selection import Candidates
from xmatch.errors import InputError
from xmatch.models.towers.weights import plain_state, read_checkpoint, require_same

CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"
COCO_CLASSES = 91


class TorchvisionDetector:
    """A Faster R-CNN: each proposal's box of its likeliest class, with what the box head makes of the proposal.

    Args:
        model: in any mode; moved to the device.
        names: of its classes, the background first.
        device: where it runs.
    """

    def __init__(self, model: FasterRCNN, names: Sequence[str], device: torch.device) -> None:
        self.model, self.names, self.device = model.to(device).eval(), names, device
        self.width = int(model.roi_heads.box_predictor.cls_score.in_features)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        """The candidates of each image."""
        heads = self.model.roi_heads
        pixels = [pil_to_tensor(image).to(self.device).float() / 255 for image in images]
        batch, _ = self.model.transform(pixels)
        maps = self.model.backbone(batch.tensors)
        maps = {"0": maps} if isinstance(maps, torch.Tensor) else maps
        proposals, _ = self.model.rpn(batch, maps)
        features = heads.box_head(heads.box_roi_pool(maps, proposals, batch.image_sizes))
        logits, deltas = heads.box_predictor(features)
        scores, labels = logits.softmax(-1)[:, 1:].max(1)
        labels = labels + 1  # the first class is the background
        boxes = heads.box_coder.decode(deltas, proposals)[torch.arange(len(labels), device=labels.device), labels]
        counts = [len(own) for own in proposals]
        parts = [part.float().cpu().split(counts) for part in (boxes, scores, features)]
        found = []
        for image, seen, box, score, label, feature in zip(
            images, batch.image_sizes, parts[0], parts[1], labels.cpu().split(counts), parts[2], strict=True
        ):
            scale = torch.tensor([image.width / seen[1], image.height / seen[0]] * 2)
            own = clip_boxes_to_image(clip_boxes_to_image(box, seen) * scale, (image.height, image.width))
            found.append(Candidates(own, score, label, feature))
        return found


def load_torchvision(config: DetectorConfig, device: torch.device) -> TorchvisionDetector:
    """The Faster R-CNN that a configuration names, with its weights.

    Raises:
        InputError: torchvision has none of that name, or weights or names do not fit.
    """
    known = [name for name in torchvision.models.list_models(torchvision.models.detection) if "fasterrcnn" in name]
    if config.model not in known:
        raise InputError(f"torchvision has no Faster R-CNN {config.model!r}; choose one of {', '.join(known)}.")
    path = weights_file(config.weights)
    state = plain_state(read_checkpoint(path), path)
    if CLASSIFIER not in state:
        raise InputError(f"{path!r} is no Faster R-CNN of torchvision: it has no {CLASSIFIER}.")
    classes = len(state[CLASSIFIER])
    names = read_names(config.names) if config.names else _coco_names(classes, path)
    if len(names) != classes:
        raise InputError(f"{config.names!r} has {len(names)} names, the weights {classes} classes (background first).")
    model = torchvision.models.get_model(config.model, weights=None, weights_backbone=None, num_classes=classes)
    require_same(state, model.state_dict(), path, f"Are they weights of {config.model}?")
    model.load_state_dict(state, strict=False)
    if config.model == "fasterrcnn_resnet50_fpn" and classes == COCO_CLASSES:
        for module in model.modules():  # its published weights were trained so, and torchvision loads them so
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    return TorchvisionDetector(model, names, device)


def _coco_names(classes: int, path: str) -> list[str]:
    if classes != COCO_CLASSES:
        raise InputError(f"{path!r} has {classes} classes, which are not COCO's: --detector.names says what they are.")
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    return list(weights.meta["categories"])
