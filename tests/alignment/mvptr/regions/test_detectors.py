"""Detectors with tiny random weights: shapes, coordinates, names; and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from small_region_detectors import NAMES, save_detr, save_program, tiny_faster_rcnn

from alignment.mvptr.regions.detector_config import DetectorConfig, read_names, weights_file
from alignment.mvptr.regions.detectors import load_detector
from alignment.mvptr.regions.selection import Candidates
from alignment.mvptr.regions.torchscript_detector import VINVL_MEAN_BGR, vinvl_size
from alignment.mvptr.regions.torchvision_detector import TorchvisionDetector
from xmatch.errors import InputError
from xmatch.models.staging import stage_file

CPU = torch.device("cpu")


def photo(width: int = 80, height: int = 50, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def check(found: list[Candidates], detector, image: Image.Image) -> None:
    """Candidates are in their image, named, scored, and of the width said."""
    for one in found:
        assert len(one.boxes) == len(one.scores) == len(one.labels) == len(one.features) > 0
        assert one.features.shape[1] == detector.width and one.features.dtype == torch.float32
        assert float(one.boxes.min()) >= 0 and (one.boxes <= torch.tensor([*image.size] * 2) + 1e-3).all()
        assert float(one.scores.min()) >= 0 and float(one.scores.max()) <= 1
        assert 0 <= int(one.labels.min()) <= int(one.labels.max()) < len(detector.names)


def test_faster_rcnn_gives_its_own_boxes_with_features_of_the_box_head() -> None:
    model = tiny_faster_rcnn()
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh, model.roi_heads.detections_per_img = 0.0, 1.0, 10_000
    detector, images = TorchvisionDetector(model, NAMES, CPU), [photo(), photo(seed=1)]
    found = detector(images)
    check(found, detector, images[0])
    assert detector.width == 12 and (torch.cat([one.labels for one in found]) > 0).all()
    pixels = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 for image in images]
    with torch.inference_mode():
        every_image = model(pixels)
    for one, whole in zip(found, every_image, strict=True):  # torchvision has a box for each class of a proposal
        best = torch.cat([one.boxes, one.scores[:, None]], 1)
        every = torch.cat([whole["boxes"], whole["scores"][:, None]], 1)
        distances = torch.cdist(best, every, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
        assert float(distances[(one.boxes[:, 2:] - one.boxes[:, :2] > 0.1).all(1)].max()) < 1e-3
        with torch.inference_mode():
            scores = model.roi_heads.box_predictor(one.features)[0].softmax(-1)
        assert torch.equal(scores[:, 1:].argmax(1) + 1, one.labels), "a feature and a label are of one proposal"


def test_faster_rcnn_is_loaded_by_torchvisions_name(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "w.pth")
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    settings = {"model": name, "weights": str(tmp_path / "weights"), "names": str(tmp_path / "names.txt")}
    detector = load_detector(DetectorConfig(**settings), "cpu")
    check(detector([photo()]), detector, photo())
    assert detector.width == 1024 and tuple(detector.names) == NAMES
    for changes, message in (
        ({"names": ""}, "4 classes, which are not COCO's"),
        ({"model": "fasterrcnn_none"}, "no Faster R-CNN 'fasterrcnn_none'; choose one of"),
        ({"model": "fasterrcnn_resnet50_fpn"}, "does not fit"),
    ):
        with pytest.raises(InputError, match=message):
            load_detector(DetectorConfig(**{**settings, **changes}), "cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no Faster R-CNN of torchvision"):
        load_detector(DetectorConfig(model=name, weights=str(tmp_path / "other.pth")), "cpu")
    (tmp_path / "names.txt").write_text("a\nb")
    with pytest.raises(InputError, match="has 2 names, the weights 4 classes"):
        load_detector(DetectorConfig(**settings), "cpu")


def test_detr_gives_a_state_for_every_query(tmp_path: Path) -> None:
    detector = load_detector(DetectorConfig(kind="transformers", model=save_detr(tmp_path / "detr")), "cpu")
    found = detector([photo(), photo(seed=1)])
    check(found, detector, photo())
    assert [len(one.boxes) for one in found] == [7, 7] and detector.width == 16
    assert list(detector.names) == ["dog", "café", "cat's tail"]
    alone = detector([photo()])[0]
    assert torch.allclose(alone.features, found[0].features, atol=1e-4)
    with pytest.raises(InputError, match="is no detector of transformers"):
        (tmp_path / "none").mkdir()
        load_detector(DetectorConfig(kind="transformers", model=str(tmp_path / "none")), "cpu")


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k"])
def test_a_grid_cuts_the_whole_image_into_cells_that_see_their_place(name: str) -> None:
    config = DetectorConfig(kind="grid", model=name, weights="none", cells=2, image_size=160)
    detector, image = load_detector(config, "cpu"), photo()
    found = detector([image, photo(seed=1)])
    check(found, detector, image)
    assert found[0].boxes.tolist() == [[0, 0, 40, 25], [40, 0, 80, 25], [0, 25, 40, 50], [40, 25, 80, 50]]
    assert detector.names == ("",) and found[0].scores.tolist() == [1] * 4
    changed = image.copy()
    changed.paste((255, 0, 0), (60, 35, 80, 50))  # the lower right
    moved = (detector([changed])[0].features - found[0].features).abs().sum(1)
    assert int(moved.argmax()) == 3


def test_torchscript_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    path = save_program(tmp_path / "od.pt")
    (tmp_path / "names.json").write_text(json.dumps({"label_to_idx": {"dog": 1, "cat": 3}}))
    settings = {"kind": "torchscript", "model": path, "names": str(tmp_path / "names.json"), "width": 3}
    with pytest.raises(InputError, match="trust_torchscript true"):
        DetectorConfig(**settings)
    detector = load_detector(DetectorConfig(**settings, trust_torchscript=True), "cpu")
    assert detector.names == ["", "dog", "", "cat"]
    image = Image.new("RGB", (80, 50), (10, 20, 30))
    (found,) = detector([image])
    assert found.boxes.tolist() == [[0, 0, 80, 50], [0, 0, 40, 12.5]] and found.labels.tolist() == [1, 3]
    staged = [stage_file(place, str(tmp_path / "shared")) for place in (path, settings["names"])]
    moved = {**settings, "model": staged[0], "names": staged[1], "trust_torchscript": True}
    assert load_detector(DetectorConfig(**moved), "cpu")([image])[0].boxes.equal(found.boxes)
    expected = np.array([30, 20, 10]) - VINVL_MEAN_BGR  # blue first
    np.testing.assert_allclose(found.features[0], expected, atol=1e-3)
    with pytest.raises(InputError, match="expected features 2048 wide"):
        load_detector(DetectorConfig(**{**settings, "width": 2048}, trust_torchscript=True), "cpu")([image])
    (tmp_path / "names.json").write_text('["a", "b"]')
    with pytest.raises(InputError, match="finds class 3, but there are 2 names"):
        load_detector(DetectorConfig(**settings, trust_torchscript=True), "cpu")([image])
    (tmp_path / "od.pt").write_bytes(b"no program")
    with pytest.raises(InputError, match="no TorchScript file"):
        load_detector(DetectorConfig(**settings, trust_torchscript=True), "cpu")


def test_vinvl_sees_600_pixels_but_at_most_1000() -> None:
    sizes = {(400, 300): (800, 600), (300, 400): (600, 800), (1000, 300): (1000, 300), (50, 50): (600, 600)}
    assert {size: vinvl_size(*size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "fasterrcnn_resnet50_fpn_v2"}, "needs --detector.weights"),
        ({"kind": "torchscript", "model": "x.pt", "trust_torchscript": True}, "--detector.names"),
        ({}, "names what finds regions"),
        ({"kind": "grid", "model": "m", "cells": 0}, "at least 1"),
    ],
)
def test_settings_that_lack_something_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_detector(DetectorConfig(**settings), "cpu")


def test_names_and_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"a": "b"}')
    with pytest.raises(InputError, match="names no classes"):
        read_names(str(tmp_path / "n.json"))
    with pytest.raises(InputError, match="has 0 files of weights"):
        weights_file(str(tmp_path))
