"""What the heads of the tasks are to say of samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from alignment.mvptr.heads import HeadConfig
from alignment.mvptr.pair_inputs import PairInputs
from alignment.mvptr.tasks.refexp import Boxes, region_labels
from alignment.mvptr.tasks.vqa import soft_targets
from xmatch.data.region_rows import ImageRegions
from xmatch.errors import InputError


def targets_of(head: HeadConfig, inputs: PairInputs, indices: npt.NDArray[np.int64]) -> torch.Tensor:
    """The targets of samples.

    Args:
        head: of the task.
        inputs: samples.
        indices: (B,) of them.

    Returns:
        vqa: (B, A) float32 soft scores. classification: (B,) int64 classes. refexp: (B, R) float32 overlaps of the
        regions with the box that is meant, −1 where there is no region.

    Raises:
        InputError: the regions of an image have no boxes.
    """
    rows = inputs.samples.take(pa.array(indices)).select(["labels", "scores", "box"]).to_pylist()
    if head.task == "vqa":
        return soft_targets([row["labels"] for row in rows], [row["scores"] for row in rows], head.outputs)
    if head.task == "classification":
        return torch.tensor([row["labels"][0] for row in rows], dtype=torch.int64)
    found = [
        region_labels(row["box"], boxes_of(inputs.image_of(int(index))), inputs.lengths.regions)
        for row, index in zip(rows, indices, strict=True)
    ]
    return torch.from_numpy(np.stack(found))


def boxes_of(image: ImageRegions) -> Boxes:
    """The boxes of an image's regions, (K, 4).

    Raises:
        InputError: they are not known.
    """
    if len(image.boxes) != len(image.features):
        raise InputError(
            f"image {image.image_id!r}: its regions have no boxes, without which none can be the one that is meant. "
            "Give a table with boxes, as jobs/extract_regions.py makes it."
        )
    return image.boxes
