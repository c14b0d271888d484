"""The COCO protocols: 5K over the whole test split, 1K as the mean of five folds in file order.

A fold is a fifth of the images, in the order of the files, with their captions; both galleries are cut to it
(VSE++, SCAN and VSE-infinity evaluate so: no shuffle). Flickr8k and Flickr30k use the whole split, as 5K does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.errors import InputError
from xmatch.evaluation.ranks import Counted, caption_ranks
from xmatch.evaluation.report import retrieval_figures
from xmatch.evaluation.similarities import PartSimilarities, Similarities

FOLDS = 5


class Retrieval(NamedTuple):
    """One protocol's outcome.

    Attributes:
        figures: as `retrieval_figures` names them; means over the parts.
        parts: image-to-text and text-to-image counts of every fold (one when the split is whole); ranks are within
            the fold's gallery.
        caption_images: per part, (captions,) row of each caption's image within the part.
        ties: queries, over all parts and both directions, that tie with a wrong candidate.
    """

    figures: dict[str, float]
    parts: list[tuple[Counted, Counted]]
    caption_images: list[npt.NDArray[np.int64]]
    ties: int


def whole_split(source: Similarities, caption_image: npt.NDArray[np.int64]) -> Retrieval:
    """Every query against the whole gallery: COCO 5K, Flickr8k, Flickr30k.

    Args:
        source: scores (N, M) of images and captions.
        caption_image: (M,) int64 row of each caption's image.
    """
    return _combine([caption_ranks(source, caption_image)], [caption_image])


def five_folds(source: Similarities, caption_image: npt.NDArray[np.int64], folds: int = FOLDS) -> Retrieval:
    """Means over consecutive folds: COCO 1K from the 5,000 images of the test split.

    Args:
        source: scores (N, M) of images and captions in the order of the published files.
        caption_image: (M,) int64 row of each caption's image, ascending.
        folds: parts of equal size; N must be a multiple.

    Raises:
        InputError: the images cannot be cut so, or captions are not in the order of their images.
    """
    images = source.shape[0]
    require_folds(images, folds)
    wrong = np.flatnonzero(np.diff(caption_image) < 0)
    if len(wrong):
        raise InputError(
            f"caption {wrong[0] + 1} belongs to image {caption_image[wrong[0] + 1]}, the one before it to image "
            f"{caption_image[wrong[0]]}; folds need captions in the order of their images. Sort them."
        )
    parts, owners, size = [], [], images // folds
    for start in range(0, images, size):
        left, right = (int(at) for at in np.searchsorted(caption_image, [start, start + size]))
        owners.append(caption_image[left:right] - start)
        fold = PartSimilarities(source, slice(start, start + size), slice(left, right))
        parts.append(caption_ranks(fold, owners[-1]))
    return _combine(parts, owners)


def require_folds(images: int, folds: int) -> None:
    """Check that images can be cut into equal folds.

    Raises:
        InputError: they cannot.
    """
    if not images or images % folds:
        raise InputError(f"{images} images do not make {folds} equal folds. COCO 1K needs the 5,000 test images.")


def _combine(parts: list[tuple[Counted, Counted]], owners: list[npt.NDArray[np.int64]]) -> Retrieval:
    each = [retrieval_figures(images.ranks, captions.ranks) for images, captions in parts]
    figures = {name: float(np.mean([fold[name] for fold in each])) for name in each[0]}
    return Retrieval(figures, parts, owners, sum(images.ties + captions.ties for images, captions in parts))
