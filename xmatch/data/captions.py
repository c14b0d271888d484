"""Captioned image sets: Karpathy JSON and LXMERT JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmatch.data import files
from xmatch.data.image_sets import lxmert_image_path
from xmatch.errors import InputError


class CaptionSet(NamedTuple):
    """Captions and the images they describe: N images, M captions.

    caption_image: (M,) int64, the row of each caption's image.
    """

    image_ids: list[str]
    image_paths: list[str]
    captions: list[str]
    caption_ids: list[str]
    caption_image: npt.NDArray[np.int64]


class _Builder:
    def __init__(self) -> None:
        self.image_ids: list[str] = []
        self.image_paths: list[str] = []
        self.captions: list[str] = []
        self.caption_ids: list[str] = []
        self.caption_image: list[int] = []

    def add(self, image_id: str, path: str, captions: Sequence[tuple[str, str]]) -> None:
        if captions:
            self.caption_image += [len(self.image_ids)] * len(captions)
            self.image_ids.append(image_id)
            self.image_paths.append(path)
            self.caption_ids += [caption_id for caption_id, _ in captions]
            self.captions += [caption for _, caption in captions]

    def build(self) -> CaptionSet:
        rows = np.asarray(self.caption_image, dtype=np.int64)
        return CaptionSet(self.image_ids, self.image_paths, self.captions, self.caption_ids, rows)


def read_captions(captions: str, images: str, split: str, source: str = "mscoco") -> CaptionSet:
    """Captions of a file, whichever of the two forms it has.

    Args:
        captions: Karpathy JSON (an object with `images`) or LXMERT JSON (a list of objects with `img_id`, `sentf`).
        images: folder of the images.
        split: of a Karpathy file, or several joined by commas ("train,restval"); LXMERT files have none.
        source: language source of a LXMERT file.

    Raises:
        InputError: the file is neither, is empty, lacks the split, or names images that are not there.
    """
    content = files.read_json(captions)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        found = _karpathy(content["images"], captions, images, [name.strip() for name in split.split(",")])
    elif isinstance(content, list):
        found = _lxmert(content, captions, images, source)
    else:
        raise InputError(
            f"{captions!r} is no caption file: expected Karpathy JSON, an object with a list 'images', or LXMERT JSON, "
            "a list of objects with 'img_id' and 'sentf'."
        )
    if not found.captions:
        raise InputError(f"{captions!r} holds no captions (split {split!r}, source {source!r}); nothing can be read.")
    _require_images(found, images)
    return found


def _karpathy(entries: list[dict[str, Any]], where: str, images: str, splits: list[str]) -> CaptionSet:
    there = sorted({str(entry.get("split")) for entry in entries})
    absent = [name for name in splits if name not in there]
    if absent:
        raise InputError(f"{where!r} has no split {absent[0]!r}; it has {', '.join(there) or 'no images at all'}.")
    builder = _Builder()
    for row, entry in enumerate(entries):
        if entry["split"] not in splits:
            continue
        try:
            name, sentences = entry["filename"], entry["sentences"]
            captions = [(str(s.get("sentid", f"{row}:{i}")), s["raw"]) for i, s in enumerate(sentences)]
            path = files.join(images, *([entry["filepath"]] if "filepath" in entry else []), name)
        except (KeyError, TypeError) as error:
            raise InputError(f"{where!r}, image {row}: {error} is missing; expected filename and sentences.") from error
        if "filepath" in entry and not files.exists(path):
            path = files.join(images, name)
        builder.add(os.path.splitext(name)[0], path, captions)
    return builder.build()


def _lxmert(entries: list[dict[str, Any]], where: str, images: str, source: str) -> CaptionSet:
    builder = _Builder()
    for row, entry in enumerate(entries):
        try:
            image_id, sentences = str(entry["img_id"]), entry["sentf"].get(source, [])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where!r}, entry {row}: {error}; expected an object with img_id and sentf.") from error
        captions = [(f"{image_id}:{source}:{i}", sentence) for i, sentence in enumerate(sentences)]
        builder.add(image_id, lxmert_image_path(image_id, images), captions)
    return builder.build()


def _require_images(found: CaptionSet, images: str) -> None:
    if not files.is_folder(images):
        raise InputError(f"image folder {images!r} does not exist; expected the folder with the captioned images.")
    if files.is_uri(images):
        return
    missing = [path for path in found.image_paths if not os.path.exists(path)]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(found.image_paths)} captioned images are not there, the first are "
            f"{', '.join(repr(path) for path in missing[:3])}. Check the image folder, or drop them from the captions."
        )
