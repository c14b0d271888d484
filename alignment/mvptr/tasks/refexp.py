"""Referring expressions: which region, or which given detection, is meant (golden `mvptr_re_head`).

Boxes are x1, y1, x2, y2 in pixels. Shapes: R regions of an image, D given detections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alignment.mvptr.tasks.samples import Sample, field_of, json_list, text_lines
from xmatch.data import files
from xmatch.errors import InputError

HIT = 0.5
"""Overlap from which a box counts as found."""
RESULTS_FILE = "predictions.jsonl"
DetectionRule = Literal["best_region", "weighted"]
"""The original's det_mod 1 and 2."""
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class WeakConfig:
    """How expressions are learnt without boxes: their own image holds a better region than another pair does."""

    margin: float = 0.2
    """By how much, in scores of regions: cosines, or logits of `dot` and `linear`."""
    negatives: Literal["other_image", "hard"] = "other_image"
    """What the other pair is, of the batch and never of the same image. `other_image`: each expression with an image
    that is drawn. `hard`, as in the original: half of the expressions with the image that is most similar by the
    encoders' own vectors, half of the images with the most similar expression."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.margin > 0 or self.negatives not in ("other_image", "hard"):
            raise InputError("weak: margin is above 0, negatives is other_image or hard.")


def read_expressions(path: str, split: str, *, with_boxes: bool = True) -> list[Sample]:
    """Expressions of a split of `ve_splits.json`; phrases are not used, as in the original.

    Args:
        path: {split: [{id, sentence, image_id, bbox [x, y, w, h]}]}.
        split: train, val, testA or testB.
        with_boxes: false: `bbox` is not looked at, and no sample has a box.

    Raises:
        InputError: the split is not there, or a record is broken; names file and row, from 0.
    """
    content = files.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(split), list):
        there = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path!r} has no list {split!r}; it has {there:.80}. Give --split one of those.")
    samples = []
    for row, record in enumerate(content[split]):
        where = f"{path!r}, {split} row {row}"
        identity, image_id = (str(field_of(record, name, (int, str), where)) for name in ("id", "image_id"))
        box = corners(field_of(record, "bbox", list, where), where) if with_boxes else None
        samples.append(Sample(identity, image_id, field_of(record, "sentence", str, where), box=box))
    return samples


def corners(box: Sequence[Any], where: str) -> list[float]:
    """x, y, width and height as corners.

    Raises:
        InputError: they are no box.
    """
    is_number = [isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in box]
    if len(box) != 4 or not all(is_number) or box[2] <= 0 or box[3] <= 0:
        raise InputError(f"{where}: expected a box [x, y, width, height] in pixels, sides above 0, got {box!r:.80}.")
    x, y, width, height = (float(one) for one in box)
    return [x, y, x + width, y + height]


def read_detections(path: str) -> dict[str, Boxes]:
    """Given detections by image: a JSON list of {image_id, box [x, y, w, h]}, as MAttNet's `*_dets.json` has it.

    Raises:
        InputError: a record is broken; names file and row.
    """
    found: dict[str, list[list[float]]] = {}
    for row, record in enumerate(json_list(path, "detections")):
        where = f"{path!r}, row {row}"
        box = corners(field_of(record, "box", list, where), where)
        found.setdefault(str(field_of(record, "image_id", (int, str), where)), []).append(box)
    return {image: np.array(boxes, np.float32) for image, boxes in found.items()}


def overlaps(boxes: Boxes, others: Boxes) -> Boxes:
    """Intersection over union of (N, 4) and (M, 4) boxes: (N, M) float32, 0 where both are empty."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(one[:, 2:] - one[:, :2], 0, None).prod(1) for one in (boxes, others)]
    either = areas[0][:, None] + areas[1][None, :] - shared
    found: Boxes = np.divide(shared, either, out=np.zeros_like(shared, np.float32), where=either > 0)
    return found


def region_labels(box: Sequence[float], regions: Boxes, places: int) -> Boxes:
    """Overlap of each region with the box that is meant: (places,) float32, −1 where there is no region.

    Args:
        box: that is meant.
        regions: (R, 4); those beyond `places` are not seen by the model.
        places: of regions in the model.
    """
    found = np.full(places, -1, np.float32)
    kept = regions[:places]
    found[: len(kept)] = overlaps(kept, np.asarray([box], np.float32))[:, 0]
    return found


def chosen_overlap(scores: npt.NDArray[np.floating], labels: Boxes) -> float:
    """Overlap of the region with the greatest score; 0 where the image has none.

    Args:
        scores: of all places, of shape (R,).
        labels: (R,) overlaps, negative at places without a region, which cannot be chosen.
    """
    there = labels >= 0
    if not there.any():
        return 0.0
    return float(labels[np.where(there, scores, -np.inf).argmax()])


def chosen_detection(scores: npt.NDArray[np.floating], region_overlaps: Boxes, rule: DetectionRule) -> int:
    """Which of the given detections is meant.

    Args:
        scores: (R,) of the regions there are.
        region_overlaps: (R, D) of regions with detections.
        rule: `best_region`: the detection that overlaps the best region most. `weighted`: the one whose overlaps with
            all regions, weighted by their scores, sum up to most.
    """
    if rule == "best_region":
        return int(region_overlaps[scores.argmax()].argmax())
    return int((scores[:, None] * region_overlaps).sum(0).argmax())


def accuracy(found: Iterable[float]) -> float:
    """Per cent of expressions whose chosen box overlaps the one that is meant by at least half."""
    values = list(found)
    return 100.0 * sum(value >= HIT for value in values) / max(1, len(values))


def recall_bound(labels: Iterable[Boxes]) -> float:
    """Per cent of expressions for which any region would be right: no model can reach more with these regions."""
    return accuracy(float(own.max(initial=0.0)) for own in labels)


def write_results(path: str, rows: Iterable[tuple[str, Sequence[float], float]]) -> None:
    """Write predictions as JSON lines {id, bbox [x, y, w, h], score}.

    Args:
        path: of the file.
        rows: id, corners of the chosen box, and its score.
    """
    lines = (
        json.dumps({"id": one, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "score": score})
        for one, box, score in rows
    )
    files.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def read_results(path: str) -> list[tuple[str, list[float], float]]:
    """A file of predictions as (id, corners, score).

    Raises:
        InputError: a line is broken; names the row.
    """
    found = []
    for row, line in enumerate(text_lines(path)):
        where = f"{path!r}, row {row}"
        try:
            record: Mapping[str, Any] = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error}).") from error
        box = corners(field_of(record, "bbox", list, where), where)
        found.append(
            (str(field_of(record, "id", (str, int), where)), box, float(field_of(record, "score", (float, int), where)))
        )
    return found
