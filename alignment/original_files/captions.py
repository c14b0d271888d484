"""AGREE's captions: the training file with its entities, the validation list, and the files of test entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from alignment.entities.entity_tables import CaptionEntities, Entity
from alignment.original_files.json_lines import Line, id_texts, read_lines, unique_ids, write_lines, written_id
from xmatch.data import files
from xmatch.errors import InputError

GROUNDED_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("phrases", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float64()), nullable=False),
    ]
)
"""One row a caption: the entities that a grounder found in its image, in its order, and how sure it was."""


class Captions(NamedTuple):
    """Captions of a split with their entities.

    Attributes:
        karpathy: images and captions as Karpathy's JSON; `imgid` is the image's key in AGREE's arrays, and caption ids
            are the lines of the file, or the place in the list, from 0.
        entities: of every caption; empty where the file has none.
        grounded: table of GROUNDED_SCHEMA; empty where the file has none.
        not_in_caption: entities that their captions do not hold, in words; they are left out.
    """

    karpathy: dict[str, Any]
    entities: list[CaptionEntities]
    grounded: pa.Table
    not_in_caption: list[str]


def locate(caption: str, text: str) -> Entity | None:
    """Where a caption holds a text, whatever the case: in whole words if it can be, and the first such place."""
    pattern = re.escape(text)
    for bound in (rf"(?<!\w){pattern}(?!\w)", pattern):
        match = re.search(bound, caption, re.IGNORECASE) if text.strip() else None
        if match:
            return Entity(match[0], *match.span())
    return None


def read_train(path: str, split: str = "train") -> Captions:
    """The training file: one caption a line, with `image`, `caption`, `image_id`, `segs` and `preds`.

    Raises:
        InputError: a line is broken, ids are of mixed types, or an image has two keys; names file and line.
    """
    lines = list(read_lines(path))
    keys = id_texts([(line.number, line.value("image_id", (int, str), path)) for line in lines], "image_id", path)
    images: dict[str, dict[str, Any]] = {}
    entities, grounded, missing = [], [], []
    for row, (line, key) in enumerate(zip(lines, keys)):
        image, caption = line.value("image", str, path), line.value("caption", str, path)
        entry = images.setdefault(image, _image_entry(image, split, key))
        if entry["imgid"] != key:
            raise InputError(
                f"{path!r}, line {line.number}: image {image!r} has the image_id {key}, and {entry['imgid']} before; "
                "expected one for each image."
            )
        caption_id, image_id = str(row), _stem(image)
        entry["sentences"].append({"raw": caption, "sentid": caption_id})
        found, absent = _located(caption, line.texts("segs", path), f"{path!r}, line {line.number}")
        entities.append(CaptionEntities(caption_id, image_id, caption, found))
        missing += absent
        grounded.append((caption_id, image_id, *_predictions(line, path)))
    return Captions({"images": list(images.values()), "dataset": "agree"}, entities, _grounded(grounded), missing)


def _image_entry(image: str, split: str, key: str) -> dict[str, Any]:
    folder, _, name = image.rpartition("/")
    place = {"filepath": folder} if folder else {}
    return place | {"filename": name, "split": split, "imgid": key, "sentences": []}


def _stem(image: str) -> str:
    return image.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _located(caption: str, texts: Sequence[str], where: str) -> tuple[tuple[Entity, ...], list[str]]:
    places = [(text, locate(caption, text)) for text in texts]
    absent = [f"{where}: entity {text!r} is not in caption {caption!r}" for text, place in places if place is None]
    return tuple(place for _, place in places if place is not None), absent


def _predictions(line: Line, path: str) -> tuple[list[str], list[float]]:
    phrases, scores = [], []
    for one in line.value("preds", list, path):
        if not isinstance(one, dict) or len(one) != 1 or type(next(iter(one.values()))) not in (int, float):
            raise InputError(
                f"{path!r}, line {line.number}: 'preds' must hold objects of one entity and its probability, got "
                f"{one!r:.60}."
            )
        [(phrase, score)] = one.items()
        phrases.append(phrase)
        scores.append(float(score))
    return phrases, scores


def _grounded(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows)) or [()] * len(GROUNDED_SCHEMA)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, GROUNDED_SCHEMA)]
    return pa.table(arrays, schema=GROUNDED_SCHEMA)


def read_val(path: str, split: str = "val") -> Captions:
    """The validation list: objects of `image` and `caption`, a list of captions; an image's key is its place.

    Raises:
        InputError: an entry has another form; names file and entry.
    """
    content = files.read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path!r} must hold a list of images with captions, got {type(content).__name__}.")
    images, count = [], 0
    for row, entry in enumerate(content):
        captions = entry.get("caption") if isinstance(entry, dict) else None
        if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
            raise InputError(f"{path!r}, entry {row}: expected an object with image and a list of captions.")
        if not isinstance(entry.get("image"), str):
            raise InputError(f"{path!r}, entry {row}: expected the image's file name, got {entry.get('image')!r:.60}.")
        one = _image_entry(entry["image"], split, str(row))
        one["sentences"] = [{"raw": text, "sentid": str(count + at)} for at, text in enumerate(captions)]
        count += len(captions)
        images.append(one)
    return Captions({"images": images, "dataset": "agree"}, [], GROUNDED_SCHEMA.empty_table(), [])


def write_train(
    path: str, karpathy: Mapping[str, Any], entities: Sequence[CaptionEntities], grounded: pa.Table | None
) -> int:
    """Write the training file, captions in the order of their ids where these are numbers; how many lines.

    Args:
        path: of the file.
        karpathy: images and captions; an image without `imgid` gets its place as key.
        entities: of the captions; a caption without them has empty `segs`.
        grounded: table of GROUNDED_SCHEMA, or None.
    """
    segs = {one.caption_id: [entity.text.lower() for entity in one.entities] for one in entities}
    preds = {} if grounded is None else {row["caption_id"]: row for row in grounded.to_pylist()}
    lines = []
    for place, image in enumerate(karpathy["images"]):
        name = "/".join(filter(None, (image.get("filepath", ""), image["filename"])))
        for sentence in image["sentences"]:
            one = str(sentence["sentid"])
            row = preds.get(one, {"phrases": [], "scores": []})
            entry = {
                "image": name,
                "caption": sentence["raw"],
                "image_id": written_id(str(image.get("imgid", place)), as_number=True),
                "segs": segs.get(one, []),
                "preds": [{phrase: score} for phrase, score in zip(row["phrases"], row["scores"])],
            }
            lines.append((one, entry))
    if all(one.isdigit() for one, _ in lines):
        lines.sort(key=lambda line: int(line[0]))
    return write_lines(path, (entry for _, entry in lines))


def write_val(path: str, karpathy: Mapping[str, Any]) -> int:
    """Write the validation list; how many images."""
    entries = [
        {
            "image": "/".join(filter(None, (image.get("filepath", ""), image["filename"]))),
            "caption": [sentence["raw"] for sentence in image["sentences"]],
        }
        for image in karpathy["images"]
    ]
    files.write_json(path, entries)
    return len(entries)


def read_segs(path: str, images: Mapping[str, Sequence[str]]) -> tuple[list[CaptionEntities], list[str]]:
    """Entities of test captions: `query_id`, `query_text`, `items`.

    Args:
        path: of the file.
        images: right image ids of each caption, from the ground truth.

    Returns:
        Entities by caption, and those that their captions do not hold, in words.

    Raises:
        InputError: a line is broken, ids are of mixed types, or a caption is not in the ground truth.
    """
    lines = list(read_lines(path))
    ids = unique_ids([(line.number, line.value("query_id", (int, str), path)) for line in lines], "query_id", path)
    found, missing = [], []
    for one, line in zip(ids, lines):
        if not images.get(one):
            raise InputError(
                f"{path!r}, line {line.number}: caption {one!r} is not in the ground truth; give that of this split."
            )
        caption = line.value("query_text", str, path)
        entities, absent = _located(caption, line.texts("items", path), f"{path!r}, line {line.number}")
        found.append(CaptionEntities(one, images[one][0], caption, entities))
        missing += absent
    return found, missing


def write_segs(path: str, entities: Sequence[CaptionEntities]) -> int:
    """Write entities of captions as the file of test entities, in lower case; how many lines."""
    return write_lines(
        path,
        (
            {
                "query_id": written_id(one.caption_id, as_number=True),
                "query_text": one.caption,
                "items": [entity.text.lower() for entity in one.entities],
            }
            for one in entities
        ),
    )
