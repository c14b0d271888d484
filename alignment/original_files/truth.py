"""AGREE's test files: captions with the images they belong to, images with their captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.original_files.json_lines import id_texts, read_lines, unique_ids, write_lines, written_id
from alignment.original_files.predictions import Key
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError


class Truth(NamedTuple):
    """What belongs to each query, in the order of the file.

    Attributes:
        key: who asks.
        items: ids that are right, by query id.
        texts: captions by query id; empty where the file has none.
    """

    key: Key
    items: dict[str, list[str]]
    texts: dict[str, str]


def read_truth(path: str) -> Truth:
    """A ground-truth file: `query_id` or `image_id`, `item_ids` (or, without them, one id in `text`), `query_text`.

    Raises:
        InputError: a line is broken, or ids are of mixed types; names file and lines.
    """
    lines = list(read_lines(path))
    if not lines:
        raise InputError(f"{path!r} is empty; expected what belongs together, one query a line.")
    key: Key = "query_id" if "query_id" in lines[0].entry else "image_id"
    queries = unique_ids([(line.number, line.value(key, (int, str), path)) for line in lines], key, path)
    found: dict[str, list[Any]] = {}
    for query, line in zip(queries, lines):
        if "item_ids" in line.entry:
            found[query] = [(line.number, item) for item in line.value("item_ids", list, path)]
        else:
            found[query] = [(line.number, line.value("text", (int, str), path))]
    ids = iter(id_texts([pair for pairs in found.values() for pair in pairs], "item_ids", path))
    items = {query: [next(ids) for _ in pairs] for query, pairs in found.items()}
    texts = {
        query: str(line.value("query_text", str, path))
        for query, line in zip(queries, lines)
        if "query_text" in line.entry
    }
    return Truth(key, items, texts)


def karpathy_of(truth: Truth, split: str, suffix: str = ".jpg") -> dict[str, Any]:
    """The captions as Karpathy's JSON, images in the order in which captions name them.

    Args:
        truth: of texts, with captions.
        split: name of the split.
        suffix: of the image files, which are named by their ids.

    Raises:
        InputError: a caption has no text, or belongs to no single image; counted and named.
    """
    if truth.key != "query_id":
        raise InputError("captions come from the file of texts, with query_id and query_text; got that of images.")
    silent = [query for query in truth.items if not truth.texts.get(query, "").strip()]
    several = [query for query, items in truth.items.items() if len(items) != 1]
    for wrong, what in ((silent, "no query_text"), (several, "not exactly one image")):
        if wrong:
            raise InputError(f"{len(wrong):,} captions have {what}, the first is {wrong[0]!r}.")
    images: dict[str, list[dict[str, Any]]] = {}
    for query, [image] in truth.items.items():
        images.setdefault(image, []).append({"raw": truth.texts[query], "sentid": query})
    entries = [
        {"filename": f"{image}{suffix}", "split": split, "imgid": image, "sentences": sentences}
        for image, sentences in images.items()
    ]
    return {"images": entries, "dataset": "agree"}


def write_truth(texts: str, images: str, captions: CaptionSet) -> None:
    """Write both ground-truth files of a split.

    Args:
        texts: path of the file of captions.
        images: path of the file of images.
        captions: the split.
    """
    image_ids = [written_id(one, as_number=True) for one in captions.image_ids]
    caption_ids = [written_id(one, as_number=True) for one in captions.caption_ids]
    owners = captions.caption_image.tolist()
    write_lines(
        texts,
        (
            {"query_id": one, "query_text": text, "item_ids": [image_ids[owner]]}
            for one, text, owner in zip(caption_ids, captions.captions, owners)
        ),
    )
    own: dict[int, list[int | str]] = {}
    for one, owner in zip(caption_ids, owners):
        own.setdefault(owner, []).append(one)
    write_lines(images, ({"image_id": one, "item_ids": own.get(row, [])} for row, one in enumerate(image_ids)))


def lists_by_query(table: Any) -> Mapping[str, list[str]]:
    """Item ids of a predictions table by query id."""
    return dict(zip(table.column("query_id").to_pylist(), table.column("item_ids").to_pylist()))
