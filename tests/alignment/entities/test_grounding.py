"""Zero-shot detectors with tiny random weights: shapes, coordinates, thresholds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from small_detectors import save_grounding_dino, save_owl
from small_models import make_images, save_tiny_model

from alignment.entities.entity_tables import boxes_of_images, check_boxes
from alignment.entities.grounding import (
    Candidates,
    GroundingConfig,
    GroundPhrases,
    best_boxes,
    joined,
    load_detector,
)
from alignment.entities.phrases import PHRASE_SCHEMA
from xmatch.errors import InputError

PHRASES = [["the cat", "a mat", "red"], ["dog"], ["hello world", "big"]]


@pytest.fixture(scope="module", params=["grounding-dino", "owlv2"])
def model(request, tmp_path_factory) -> str:
    save = {"grounding-dino": save_grounding_dino, "owlv2": save_owl}[request.param]
    return save(tmp_path_factory.mktemp(request.param))


def photos(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    pixels = [np.random.default_rng(at).integers(0, 255, (h, w, 3)).astype(np.uint8) for at, (w, h) in enumerate(sizes)]
    return [Image.fromarray(one) for one in pixels]


def test_every_image_has_candidates_of_its_own_phrases(model: str) -> None:
    images = photos([(64, 48)] * 3)
    detector = load_detector(model, "cpu")
    found = detector(images, PHRASES)
    for one, phrases in zip(found, PHRASES):
        assert one.scores.shape == (len(one.boxes), len(phrases))
        assert ((one.scores >= 0) & (one.scores <= 1)).all()
        assert one.boxes.shape[1] == 4 and torch.isfinite(one.boxes).all()
        assert (one.boxes[:, 2:] >= one.boxes[:, :2]).all()
    for at in range(3):
        alone = detector(images[at : at + 1], PHRASES[at : at + 1])[0]
        torch.testing.assert_close(alone.scores, found[at].scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.boxes, found[at].boxes, atol=1e-4, rtol=0)


def rows_of(folder: str, phrases: list[list[str]]) -> pa.Table:
    names = ["a", "none", "b", "c"][: len(phrases)]
    places = [f"{folder}/{name}.jpg" for name in names]
    columns = [names, places, [None] * len(names), phrases]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PHRASE_SCHEMA)], schema=PHRASE_SCHEMA)


def test_the_step_keeps_one_box_a_phrase_and_names_broken_images(model: str, tmp_path: Path) -> None:
    rows = rows_of(make_images(tmp_path), [["the cat", "big"], ["dog"], ["a mat"], []])
    every = GroundPhrases(GroundingConfig(model=model, threshold=0.0, phrases_per_pass=1), device="cpu")
    made = every("s", rows)
    check_boxes(made.table, "here")
    assert made.counts["images"] == 3 and made.counts["phrases"] == 3 and made.counts["quarantined"] == 1
    assert made.counts["boxes"] + made.counts["phrases_without_box"] == 3
    assert made.quarantine.column("item").to_pylist() == ["none"]
    assert set(made.table.column("source").to_pylist()) <= {"grounding"}
    assert every("s", rows).table.equals(made.table)
    scores = made.table.column("score").to_pylist()
    limit = sorted(scores)[len(scores) // 2]
    some = GroundPhrases(GroundingConfig(model=model, threshold=limit, phrases_per_pass=1), device="cpu")("s", rows)
    assert some.table.equals(made.table.filter(pa.array([score >= limit for score in scores])))
    assert list(boxes_of_images(made.table)) == [
        one for one in "ab" if one in made.table.column("image_id").to_pylist()
    ]


def test_owl_boxes_are_fractions_of_the_image_not_of_its_square(tmp_path: Path) -> None:
    detector = load_detector(save_owl(tmp_path), "cpu")
    wide = photos([(64, 32)])[0]
    square = Image.new("RGB", (64, 64), (0, 0, 0))
    square.paste(wide, (0, 0))
    seen, whole = detector([wide], [["dog"]])[0], detector([square], [["dog"]])[0]
    torch.testing.assert_close(seen.boxes[:, [1, 3]], 2 * whole.boxes[:, [1, 3]], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(seen.boxes[:, [0, 2]], whole.boxes[:, [0, 2]], atol=1e-2, rtol=1e-2)


def test_the_best_box_is_clipped_and_must_reach_the_threshold() -> None:
    boxes = torch.tensor([[-0.5, 0.0, 0.5, 1.5], [0.2, 0.2, 0.4, 0.4], [1.0, 0.0, 2.0, 1.0]])
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.3, 0.3], [0.2, 0.2, 0.8]])
    found = best_boxes("i", ["x", "y", "z"], Candidates(scores, boxes), 0.3)
    assert [(box.phrase, round(box.x1, 3), round(box.y2, 3)) for box in found] == [
        ("x", 0.0, 1.0),
        ("y", 0.2, 0.4),
        ("z", 0.2, 0.4),  # its best candidate lies outside of the image
    ]
    assert not best_boxes("i", ["x"], Candidates(scores, boxes), 0.95)


def test_phrases_are_joined_with_full_stops_between_alone() -> None:
    text, spans = joined(["a cat", "mr. big?", "."])
    assert text == "a cat. mr big. object."
    assert [text[start:end] for start, end in spans] == ["a cat", "mr big", "object"]


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no detector of transformers|expected one of grounding-dino"):
        load_detector(save_tiny_model(tmp_path / "dual"))
    with pytest.raises(InputError, match="does not exist"):
        load_detector(str(tmp_path / "none"))
    for wrong in ({"threshold": 1.5}, {"batch_size": 0}):
        with pytest.raises(InputError):
            GroundingConfig(**wrong)


def test_too_many_phrases_at_once_name_the_setting(tmp_path: Path) -> None:
    detector = load_detector(save_grounding_dino(tmp_path), "cpu")
    with pytest.raises(InputError, match="lower phrases_per_pass"):
        detector(photos([(64, 48)]), [["hello world"] * 40])
