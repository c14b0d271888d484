"""Detectors of regions with tiny random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

NAMES = ("background", "dog", "café", "cat's tail")


def tiny_faster_rcnn() -> FasterRCNN:
    """A Faster R-CNN of a few thousand weights and 4 classes, features 12 wide."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 7, stride=8, padding=3), nn.ReLU())
    backbone.out_channels = 8
    return FasterRCNN(
        backbone,
        min_size=64, max_size=96,
        rpn_anchor_generator=AnchorGenerator(sizes=((16, 32, 48),), aspect_ratios=((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        box_head=TwoMLPHead(8 * 9, 12),
        box_predictor=FastRCNNPredictor(12, len(NAMES)),
    )  # fmt: skip


def save_detr(folder: Path, queries: int = 7) -> str:
    """A DETR of a few thousand weights and 3 classes, states 16 wide; its folder."""
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        num_queries=queries, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, id2label={0: "dog", 1: "café", 2: "cat's tail"},
    )  # fmt: skip
    DetrForObjectDetection(config).eval().save_pretrained(str(folder))
    DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(str(folder))
    return str(folder)


class Program(nn.Module):
    """Two boxes of an image, whose features hold its means."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As VinVL's TorchScript: boxes, labels and features of one image."""
        high, wide = float(pixels.shape[2]), float(pixels.shape[3])
        boxes = torch.tensor([[[0.0, 0.0, wide, high], [0.0, 0.0, wide / 2, high / 4]]])
        means = pixels.mean([2, 3]).unsqueeze(1).repeat(1, 2, 1)
        return boxes, torch.tensor([[1, 3]]), means


def save_program(path: Path) -> str:
    """The program as a TorchScript file; its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Program()).save(str(path))
    return str(path)
