"""Captions without their photographs, for text pre-training."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Collection
from typing import Any

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionBuilder, CaptionSet, require_splits
from xmatch.data.image_keys import image_key
from xmatch.errors import InputError


def read_text_captions(path: str, split: str = "", exclude: Collection[str] = ()) -> CaptionSet:
    """Captions of Karpathy's JSON, plain or gzip, whose photographs are not needed: every image path is "".

    Args:
        path: `dataset_*.json` or `dataset_*.json.gz`.
        split: one split, or several joined by commas; "" takes all.
        exclude: ids of photographs whose captions are left out, in any spelling that `image_key` knows. Leaving out
            is safe, so here a bare number matches the number of an id such as `36979_693b08cb0e` however short.

    Raises:
        InputError: the file is not there or has another form, the split is absent, or nothing is left.
    """
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path!r} is not Karpathy's JSON: expected an object with a list 'images'.")
    splits = [name.strip() for name in split.split(",")] if split else []
    require_splits(splits, sorted({str(e.get("split")) for e in content["images"] if isinstance(e, dict)}), path)
    left_out = spellings(exclude)
    builder = CaptionBuilder()
    for row, entry in enumerate(content["images"]):
        try:
            name, sentences = str(entry["filename"]), entry["sentences"]
            captions = [(str(s.get("sentid", f"{row}:{i}")), str(s["raw"])) for i, s in enumerate(sentences)]
            wanted = not splits or entry["split"] in splits
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path!r}, image {row}: {error}; expected filename, split, and sentences with raw."
            ) from error
        if wanted and not spellings([name]) & left_out:
            builder.add(os.path.splitext(name)[0], "", captions)
    if not builder.captions:
        raise InputError(f"{path!r} holds no captions for split {split!r} once {len(exclude)} images are left out.")
    return builder.build()


def spellings(image_ids: Collection[str]) -> set[str]:
    """What ids may be found by where photographs are left out: as they are, without suffix, by key, kind or not."""
    found = set(image_ids) | {os.path.splitext(image_id)[0] for image_id in image_ids}
    keys = {key for key in map(image_key, image_ids) if key}
    return found | keys | {key.split(":", 1)[1] for key in keys}


def _read(path: str) -> Any:
    if not path.endswith(".gz"):
        return files.read_json(path)
    try:
        return json.loads(gzip.decompress(files.read_bytes(path)))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path!r} is not JSON within gzip: {error}. Copy it again.") from error
