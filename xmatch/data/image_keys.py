"""One key for one photograph, however a data set spells its id.

The first rule that fits the name without folders and suffix:

    COCO_val2014_000000391895, val2014_391895, COCO_391895                          coco:391895
    000000391895: 12 digits that begin with 0, as COCO 2017 names its files         coco:391895
    391895 in a folder train2014, val2017, … or of a file named COCO_…_391895       coco:391895
    1000268201_693b08cb0e, as Flickr8k names its files                              number:1000268201
    1000092795: 7 to 11 digits that do not begin with 0, as Flickr30k has them      number:1000092795
    any other number, and counters such as img_12, row7 or page-003                 no key
    any other name                                                                  name:<name>

A short number says nothing outside its own data set: it may be a row of a precomputed file, a COCO id without its
zeros, or one of Flickr's first photographs. It matches nothing by id; such photographs are known by their content or
their captions. Visual Genome's long numbers are keyed like Flickr's, whose range they hardly share.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SUFFIX = re.compile(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?|npy|npz)$", re.IGNORECASE)
COCO_SPLIT = r"(?:train|val|test)20[0-9]{2}"
COCO_NAME = re.compile(rf"(?:coco[_-](?:{COCO_SPLIT}[_-])?|{COCO_SPLIT}[_-])0*([1-9][0-9]*)", re.IGNORECASE)
COCO_FOLDER = re.compile(COCO_SPLIT, re.IGNORECASE)
FLICKR8K_NAME = re.compile(r"([1-9][0-9]{7,10}|[1-9][0-9]{3,6}(?=_[0-9]*[a-f]))_[0-9a-f]{10}")
"""A short number needs a letter after it: Conceptual Captions' downloads are called <row>_<checksum in digits>."""
PADDED_COCO = re.compile(r"0[0-9]{11}")
LONG_NUMBER = re.compile(r"[1-9][0-9]{6,10}")
COUNTED = "im|img|image|photo|pic|picture|frame|dsc|dscn|page|row|sample|item|id|train|val|dev|test"
COUNTER = re.compile(rf"(?:{COUNTED})?[_ :.-]*[0-9]{{1,9}}|[0-9]+", re.IGNORECASE)


def image_key(image_id: str, path: str = "") -> str | None:
    """The key of a photograph, or null where its id says nothing outside its data set.

    Args:
        image_id: as a data set spells it; a file name or a path too.
        path: where the image lies, if known: it can say that a bare number is COCO's.
    """
    folders, stem = _split(image_id)
    if found := COCO_NAME.fullmatch(stem):
        return f"coco:{found[1]}"
    if found := FLICKR8K_NAME.fullmatch(stem):
        return f"number:{found[1]}"
    if not COUNTER.fullmatch(stem):
        return f"name:{stem}" if stem else None
    number = stem.lstrip("0")
    if PADDED_COCO.fullmatch(stem) and number:
        return f"coco:{number}"
    if number.isdigit():
        place, name = _split(path)
        file = COCO_NAME.fullmatch(name)
        if any(map(COCO_FOLDER.fullmatch, (*folders, *place[-1:]))) or (file and file[1] == number):
            return f"coco:{number}"
    return f"number:{stem}" if LONG_NUMBER.fullmatch(stem) else None


def image_keys(image_ids: Sequence[str], paths: Sequence[str]) -> list[str | None]:
    """The key of each photograph, by id and path."""
    return [image_key(image_id, path) for image_id, path in zip(image_ids, paths, strict=True)]


def _split(path: str) -> tuple[list[str], str]:
    """Folders and stem of a path, of a member of a tar or Parquet file, or of a bare id."""
    *folders, name = path.replace("\\", "/").rsplit("#", 1)[-1].split("/")
    return folders, SUFFIX.sub("", name)
