"""What is evaluated: the images and captions of one split, with or without the photographs themselves."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np

from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.data.precomp import read_precomp
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError
from xmatch.evaluation.cxc import CAPTION_ID, IMAGE_ID, Gallery
from xmatch.training.samples import CaptionsConfig, read_split


@dataclass(frozen=True, kw_only=True)
class GalleryConfig(CaptionsConfig):
    """The captioned split that is measured.

    Without a folder of images, Karpathy's JSON is read for its captions and ids alone: enough for embeddings and saved
    similarities.
    """

    def __post_init__(self) -> None:
        """Images are needed only where a model reads them."""
        if not self.is_text_only:
            super().__post_init__()

    @property
    def is_text_only(self) -> bool:
        """Whether the photographs are not asked for."""
        return self.captions.endswith((".json", ".json.gz")) and not self.images


def read_gallery(config: GalleryConfig, *, needs_images: bool) -> CaptionSet:
    """Images and captions in the order of the file.

    Args:
        config: the split.
        needs_images: a model reads photographs or regions; without, captions and ids are enough.

    Raises:
        InputError: the captions cannot be read, or images are needed and no place of theirs is given.
    """
    if config.is_text_only:
        if needs_images:
            raise InputError(
                f"{config.captions!r} names images, and the model reads them: give their folder as data.images."
            )
        return read_text_captions(config.captions, config.split)
    if not needs_images and files.exists(files.join(config.captions, f"{config.split}_caps.txt")):
        return read_precomp(config.captions, config.split, images=config.images or None).captions
    found = read_split(config)
    without = [row for row, path in enumerate(found.image_paths) if not path]
    if needs_images and without:
        raise InputError(
            f"image {found.image_ids[without[0]]!r} of {config.captions!r} has no place ({len(without)} of "
            f"{len(found.image_ids)} have none), and the model reads photographs; expected an id_mapping.json beside a "
            "precomputed folder, or a captions file with data.images."
        )
    return found


def coco_gallery(captions: CaptionSet) -> Gallery:
    """The gallery with COCO's own numbers, which CxC and ECCV Caption go by.

    Raises:
        InputError: an id is no number of COCO's, or repeats.
    """
    images = _numbers(captions.image_ids, IMAGE_ID, "image", "COCO_val2014_000000391895 or 391895")
    texts = _numbers(
        captions.caption_ids,
        CAPTION_ID,
        "caption",
        "770337: the sentids of dataset_coco.json, or testall_capids.txt beside a precomputed folder",
    )
    return Gallery(images, texts, captions.caption_image)


def _numbers(
    ids: list[str], pattern: re.Pattern[str], kind: str, example: str
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """COCO's numbers within ids, int64 of shape (N,)."""
    found = [pattern.fullmatch(one) for one in ids]
    wrong = [row for row, match in enumerate(found) if not match]
    if wrong:
        raise InputError(
            f"{kind} {wrong[0]} has the id {ids[wrong[0]]!r}, which is no number of COCO's ({len(wrong)} of {len(ids)} "
            f"are not); CxC and ECCV Caption go by these numbers. Expected one such as {example}."
        )
    numbers = np.array([int(match[1]) for match in found if match], np.int64)
    if len(np.unique(numbers)) < len(numbers):
        repeated = next(n for n, count in zip(*np.unique(numbers, return_counts=True)) if count > 1)
        raise InputError(f"{kind} number {repeated} occurs twice in the split; expected each once. Drop one.")
    return numbers


def gallery_sha256(captions: CaptionSet) -> str:
    """SHA-256 in hexadecimal of ids, captions and who belongs to whom, whatever form they were read from."""
    digest = hashlib.sha256()
    for part in (captions.image_ids, captions.caption_ids, captions.captions, captions.caption_image.tolist()):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()
