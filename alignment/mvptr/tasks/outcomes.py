"""What scores amount to: figures, and what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.mvptr.heads import HeadConfig
from alignment.mvptr.pair_inputs import PairInputs
from alignment.mvptr.tasks import refexp
from alignment.mvptr.tasks.refexp import Boxes, DetectionRule
from alignment.mvptr.tasks.targets import boxes_of, targets_of
from alignment.mvptr.tasks.vqa import accuracy_by_kind
from xmatch.errors import InputError

Scores = npt.NDArray[np.float32]
RULES: Mapping[str, DetectionRule] = {"detections_best_region": "best_region", "detections_weighted": "weighted"}
"""Figures of given detections, and how one of these is chosen."""


def task_figures(
    head: HeadConfig, inputs: PairInputs, scores: Scores, detections: Mapping[str, Boxes] | None = None
) -> dict[str, float]:
    """Figures of a task in per cent.

    Args:
        head: of the task.
        inputs: samples with labels.
        scores: of all of them.
        detections: refexp: given boxes by image, one of which is chosen, too.

    Returns:
        vqa: `accuracy` by soft scores, and `accuracy_KIND`. classification: `accuracy`, and of each class. refexp:
        `accuracy`, `recall_bound` (no model can reach more with these regions), and those of RULES.
    """
    if head.task != "refexp":
        return choice_figures(inputs.samples, scores.argmax(1))
    indices = np.arange(len(inputs))
    labels = targets_of(head, inputs, indices).numpy()
    chosen = [refexp.chosen_overlap(*row) for row in zip(scores, labels, strict=True)]
    found = {"accuracy": refexp.accuracy(chosen), "recall_bound": refexp.recall_bound(labels)}
    if detections is None:
        return found
    for name, rule in RULES.items():
        picked = [_detected(inputs, int(index), scores[index], detections, rule) for index in indices]
        meant = [np.asarray([box], np.float32) for box in inputs.samples.column("box").to_pylist()]
        hits = [float(refexp.overlaps(one.box[None], box)[0, 0]) for one, box in zip(picked, meant, strict=True)]
        found[f"accuracy_{name}"] = refexp.accuracy(hits)
    return found


def choice_figures(samples: pa.Table, choices: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures of answers or classes that were chosen: `accuracy` by the labels' scores, and `accuracy_KIND`.

    Args:
        samples: table of `tasks.samples.SCHEMA` with labels.
        choices: label chosen for each, int64 of shape (M,).
    """
    rows = samples.select(["labels", "scores", "kind"]).to_pylist()
    found = [
        dict(zip(row["labels"], row["scores"], strict=True)).get(choice, 0.0)
        for row, choice in zip(rows, choices.tolist(), strict=True)
    ]
    return accuracy_by_kind(found, [row["kind"] for row in rows])


class Picked(NamedTuple):
    """The box that was chosen, x1, y1, x2, y2, and its score."""

    box: npt.NDArray[np.float32]
    score: float


def picked_box(
    inputs: PairInputs,
    index: int,
    scores: Scores,
    detections: Mapping[str, Boxes] | None = None,
    rule: DetectionRule = "best_region",
) -> Picked:
    """What an expression means: the best region, or where detections are given, one of these.

    Args:
        inputs: samples.
        index: of the expression.
        scores: (R,) of its image's regions.
        detections: by image.
        rule: how one of them is chosen.

    Raises:
        InputError: its image has no regions or detections.
    """
    if detections is not None:
        return _detected(inputs, index, scores, detections, rule)
    boxes = boxes_of(inputs.image_of(index))[: inputs.lengths.regions]
    if not len(boxes):
        raise InputError(f"expression {index}: its image has no regions.")
    best = int(scores[: len(boxes)].argmax())
    return Picked(boxes[best], float(scores[best]))


def _detected(
    inputs: PairInputs, index: int, scores: Scores, detections: Mapping[str, Boxes], rule: DetectionRule
) -> Picked:
    name = str(inputs.samples.column("image_id")[index].as_py())
    given = detections.get(name)
    regions = boxes_of(inputs.image_of(index))[: inputs.lengths.regions]
    if given is None or not len(given) or not len(regions):
        raise InputError(f"expression {index}: image {name!r} has no given detections, or no regions.")
    kept = scores[: len(regions)]
    place = refexp.chosen_detection(kept, refexp.overlaps(regions, given), rule)
    return Picked(given[place], float(kept.max()))
