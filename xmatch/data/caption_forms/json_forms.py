"""JSON forms: Karpathy's splits, LXMERT's lists, and the official COCO caption annotations."""

from __future__ import annotations

import os
from typing import Any

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionBuilder, CaptionRequest, CaptionSet, require_splits
from xmatch.data.image_sets import lxmert_image_path
from xmatch.errors import InputError


def read_karpathy(request: CaptionRequest) -> CaptionSet:
    """Karpathy's JSON: `images`, each with `filename`, `split` and `sentences` of `raw` and `sentid`.

    Raises:
        InputError: the split is absent, or an image lacks a key; names file and image.
    """
    entries, where, images = request.content["images"], request.captions, request.images
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(
                f"{where!r}, image {row}: expected an object with filename and sentences, got {entry!r:.40}."
            )
    require_splits(request.splits, sorted({str(entry.get("split")) for entry in entries}), where)
    builder = CaptionBuilder()
    for row, entry in enumerate(entries):
        if str(entry.get("split")) not in request.splits:
            continue
        try:
            name, sentences = entry["filename"], entry["sentences"]
            captions = [(str(s.get("sentid", f"{row}:{i}")), s["raw"]) for i, s in enumerate(sentences)]
            path = files.join(images, *([entry["filepath"]] if "filepath" in entry else []), name)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where!r}, image {row}: {error}; expected filename, and sentences with a raw caption each."
            ) from error
        if "filepath" in entry and not files.exists(path):
            path = files.join(images, name)
        builder.add(os.path.splitext(name)[0], path, _whole(captions, f"{where!r}, image {row}", builder))
    return builder.build()


def read_lxmert(request: CaptionRequest) -> CaptionSet:
    """LXMERT's JSON: a list of objects with `img_id` and `sentf`, from a language source to its sentences.

    Raises:
        InputError: an entry lacks a key; names file and entry.
    """
    builder = CaptionBuilder()
    for row, entry in enumerate(request.content):
        try:
            image_id, sentences = str(entry["img_id"]), entry["sentf"].get(request.source, [])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{request.captions!r}, entry {row}: {error}; expected an object with img_id and sentf."
            ) from error
        where = f"{request.captions!r}, entry {row}"
        if not isinstance(sentences, list):
            raise InputError(f"{where}: expected a list of sentences of {request.source!r}, got {sentences!r:.40}.")
        captions = [(f"{image_id}:{request.source}:{i}", sentence) for i, sentence in enumerate(sentences)]
        builder.add(image_id, lxmert_image_path(image_id, request.images), _whole(captions, where, builder))
    return builder.build()


def _whole(captions: list[tuple[str, Any]], where: str, builder: CaptionBuilder) -> list[tuple[str, str]]:
    """The captions that are text and not blank; the others are refused into `builder`."""
    kept = []
    for caption_id, caption in captions:
        if isinstance(caption, str) and caption.strip():
            kept.append((caption_id, caption))
        else:
            builder.refuse(f"{where}, caption {caption_id}: expected text, got {caption!r:.40}")
    return kept


def read_coco(request: CaptionRequest) -> CaptionSet:
    """The official COCO annotations: `images` of (id, file_name), `annotations` of (id, image_id, caption).

    It has no splits: all is read. Image ids are the file names' stems, caption ids the annotation ids; the captions of
    an image keep the file's order.

    Raises:
        InputError: an entry lacks a key, an id repeats, or a caption's image is not listed; names file and entry.
    """
    where = request.captions
    names: dict[str, str] = {}
    for row, entry in enumerate(request.content["images"]):
        try:
            key, name = str(entry["id"]), str(entry["file_name"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{where!r}, image {row}: {error}; expected an object with id and file_name.") from error
        if key in names:
            raise InputError(f"{where!r}, image {row}: id {key} was there before; image ids must be unique.")
        names[key] = name
    builder = CaptionBuilder()
    captions = _coco_captions(request.content["annotations"], names, where, builder)
    for key, name in names.items():
        builder.add(os.path.splitext(name)[0], _coco_path(name, request.images), captions.get(key, []))
    return builder.build()


def _coco_captions(
    entries: list[Any], names: dict[str, str], where: str, builder: CaptionBuilder
) -> dict[str, list[tuple[str, str]]]:
    """Pairs of (annotation id, caption) by image id; empty captions are refused into `builder`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row, entry in enumerate(entries):
        try:
            key, caption_id, caption = str(entry["image_id"]), str(entry["id"]), entry["caption"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{where!r}, annotation {row}: {error}; expected an object with id, image_id and caption. The "
                "instances and keypoints files have none: give the captions file."
            ) from error
        if key not in names:
            raise InputError(
                f"{where!r}, annotation {row}: its image {key} is not among the {len(names)} of 'images'. Take both "
                "lists from one file."
            )
        found.setdefault(key, []).extend(_whole([(caption_id, caption)], f"{where!r}, annotation {row}", builder))
    return found


def _coco_path(name: str, images: str) -> str:
    stem, suffix = os.path.splitext(name)
    return lxmert_image_path(stem, images) if "COCO" in stem and suffix == ".jpg" else files.join(images, name)
