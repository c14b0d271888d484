"""The `.pt` sets of MVPTR's retrieval: features, tags, captions and phrases of the images of a split.

    {split}_img_frcnn_feats.pt   {image: float tensor (n, C)}
    {split}_vg_labels.pt         {image: {"class": [n names]}, or one text}
    {split}_captions.pt          {image: captions, or their JSON}
    *_sg.pt                      {image: {caption's number: phrases}}; a phrase is a list of texts, or one joined by "_"

They are read as tensors, plain values and containers, never as code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from alignment.mvptr.phrase_extraction import PHRASE_TABLE
from alignment.mvptr.phrases import Phrase
from xmatch.data import files
from xmatch.data.region_rows import ImageRegions, boxes_of_geometry
from xmatch.errors import InputError
from xmatch.models.towers.weights import read_checkpoint

FEATURES, LABELS, CAPTIONS, PHRASES = "img_frcnn_feats", "vg_labels", "captions", "sg"


class CaptionedImage(NamedTuple):
    """An image's id and its captions."""

    image_id: str
    captions: tuple[str, ...]


def pt_path(folder: str, split: str, part: str) -> str:
    """Where a part of a split is."""
    return files.join(folder, f"{split}_{part}.pt")


def read_pt_regions(features: str, labels: str) -> Iterator[ImageRegions]:
    """The regions of a split, boxes as fractions from the last six numbers of the features.

    A text for a whole image instead of a name for each region stands with its first region, unless it has as many
    words.

    Args:
        features: path of the features.
        labels: path of the tags.

    Raises:
        InputError: a file is broken, or an image's parts do not fit; names file and row.
    """
    tags = _read(labels)
    for row, (key, tensor) in enumerate(_read(features).items()):
        where = f"{features!r}, row {row}: image {key!r}"
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
            raise InputError(f"{where} has no matrix of features; expected a float tensor (n, C).")
        array = tensor.float().numpy()
        if not len(array) or not np.isfinite(array).all():
            raise InputError(f"{where} has no features, or one that is not finite.")
        if key not in tags:
            raise InputError(f"{where} has no tags in {labels!r}.")
        boxes = boxes_of_geometry(array)
        side = 1 if len(boxes) else 0
        yield ImageRegions(key, boxes, array, side, side, _names(tags[key], len(array), f"{labels!r}: image {key!r}"))


def _names(value: Any, count: int, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        words = value.split()
        return tuple(words) if len(words) == count else (value, *[""] * (count - 1))
    names = value.get("class") if isinstance(value, dict) else value
    if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(n, str) for n in names):
        raise InputError(f"{where} has tags {value!r:.60}, but {count} regions; expected a name for each, or one text.")
    return tuple(names)


def read_pt_captions(path: str) -> list[CaptionedImage]:
    """The captions of a split.

    Raises:
        InputError: the file is broken; names the row.
    """
    found = []
    for row, (key, value) in enumerate(_read(path).items()):
        try:
            captions = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise InputError(f"{path!r}, row {row}: image {key!r} has captions that are no JSON: {error}.") from error
        if not isinstance(captions, (list, tuple)) or not all(isinstance(one, str) for one in captions):
            raise InputError(f"{path!r}, row {row}: image {key!r} has no list of captions, but {captions!r:.60}.")
        found.append(CaptionedImage(key, tuple(captions)))
    return found


def karpathy_json(images: Iterable[CaptionedImage], split: str) -> dict[str, Any]:
    """Captions in Karpathy's form, numbered through."""
    entries: list[dict[str, Any]] = []
    count = 0
    for image in images:
        sentences = [{"raw": text, "sentid": count + at} for at, text in enumerate(image.captions)]
        count += len(sentences)
        entries.append({"filename": f"{image.image_id}.jpg", "split": split, "sentences": sentences})
    return {"images": entries}


def read_pt_phrases(path: str, images: Sequence[CaptionedImage]) -> pa.Table:
    """The phrases of captions as a PHRASE_TABLE, with the caption ids of `karpathy_json`.

    Args:
        path: of the file.
        images: whose captions they are of; the file may have more.

    Raises:
        InputError: a caption has none, or they are of another form; names file and image.
    """
    found = _read(path)
    rows: list[tuple[Any, ...]] = []
    for image in images:
        for at, caption in enumerate(image.captions):
            where = f"{path!r}: image {image.image_id!r}, caption {at}"
            own = _entry(found.get(image.image_id), at)
            if not isinstance(own, (list, tuple)):
                raise InputError(f"{where} has no list of phrases, but {own!r:.60}.")
            rows.append((str(len(rows)), image.image_id, caption, [list(_phrase(one, where)) for one in own], None))
    columns = list(zip(*rows, strict=True)) or [()] * len(PHRASE_TABLE)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, PHRASE_TABLE, strict=True)]
    return pa.table(arrays, schema=PHRASE_TABLE)


def _entry(value: Any, at: int) -> Any:
    if isinstance(value, dict):
        return value.get(at, value.get(str(at)))
    return value[at] if isinstance(value, (list, tuple)) and at < len(value) else None


def _phrase(value: Any, where: str) -> Phrase:
    phrase = tuple(value.split("_")) if isinstance(value, str) else value
    is_whole = isinstance(phrase, (list, tuple)) and 1 <= len(phrase) <= 3 and all(isinstance(t, str) for t in phrase)
    if not is_whole:
        raise InputError(f"{where}: {value!r:.60} is no phrase; expected one to three texts, or these joined by '_'.")
    return tuple(phrase)


def write_pt_regions(folder: str, split: str, images: Iterable[ImageRegions]) -> int:
    """Write features and tags of a split; the number of images."""
    found = {image.image_id: image for image in images}
    features = {key: torch.from_numpy(np.array(image.features)) for key, image in found.items()}
    _write(pt_path(folder, split, FEATURES), features)
    _write(pt_path(folder, split, LABELS), {key: {"class": list(image.tags)} for key, image in found.items()})
    return len(found)


def write_pt_captions(path: str, images: Iterable[CaptionedImage]) -> None:
    """Write the captions of a split."""
    _write(path, {image.image_id: list(image.captions) for image in images})


def write_pt_phrases(path: str, table: pa.Table) -> None:
    """Write the phrases of a PHRASE_TABLE, an image's captions numbered in the table's order."""
    found: dict[str, dict[int, list[list[str]]]] = {}
    for row in table.to_pylist():
        own = found.setdefault(row["image_id"], {})
        own[len(own)] = row["phrases"]
    _write(path, found)


def _read(path: str) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path!r} holds no map by image, but {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def _write(path: str, content: Mapping[str, Any]) -> None:
    with files.open_atomic(path) as sink:
        torch.save(content, sink)
