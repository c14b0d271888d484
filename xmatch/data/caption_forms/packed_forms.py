"""Forms that hold captions and images together: WebDataset tars and Parquet files.

Their images stay where they are, as the uris that `xmatch.data.packed_images` reads.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionBuilder, CaptionRequest, CaptionSet, require_splits
from xmatch.data.image_sets import IMAGE_SUFFIXES
from xmatch.data.packed_images import IMAGE_COLUMNS, image_column, is_plain, open_parquet, open_tar
from xmatch.errors import InputError

MAX_TEXT_BYTES = 1 << 20
"""Largest .txt or .json member read; a larger one is a bad row."""
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "TEXT")
"""Columns of captions, the first that is there: strings, or lists of strings."""
PATH_COLUMNS = ("path", "image_path", "filename", "file_name")
"""Columns of image names below the images' folder, where a Parquet file holds no images."""


def packs_of(place: str, suffix: str) -> list[str]:
    """The files with `suffix` that a file, a folder or a glob (`*` and `?` in the last part only) names, in order.

    Raises:
        InputError: there are none.
    """
    folder, _, pattern = place.rpartition("/")
    if any(mark in pattern for mark in "*?"):
        found = [path for path in files.list_files(folder or ".") if fnmatchcase(path.rsplit("/", 1)[-1], pattern)]
    else:
        found = files.list_files(place, suffix) if files.is_folder(place) else [place]
    if not found:
        raise InputError(f"no files {suffix} in {place!r}; expected at least one there.")
    return found


def read_webdataset(request: CaptionRequest) -> CaptionSet:
    """WebDataset tars: KEY.jpg (.jpeg, .png, .webp) with KEY.txt, or KEY.json holding `caption` or `captions`.

    A .txt is one caption, its white space squeezed. An image without a caption, and a caption without an image, is a
    bad row. Tars have no splits: give each split's tars.

    Raises:
        InputError: a tar is missing or broken, or a key repeats; names tar and key.
    """
    builder = CaptionBuilder()
    for path in packs_of(request.captions, ".tar"):
        images, texts = _walk(path, builder)
        for key in texts.keys() - images.keys():
            builder.refuse(f"{path!r}, key {key!r}: a caption without an image")
        for key, name in images.items():
            if key not in texts:
                builder.refuse(f"{path!r}, key {key!r}: an image without a caption, expected {key}.txt or {key}.json")
                continue
            if builder.has(key):
                raise InputError(f"{path!r}, key {key!r}: it was there before; keys must be unique among all tars.")
            builder.add(key, f"{path}#{name}", [(f"{key}:{i}", text) for i, text in enumerate(texts[key])])
    return builder.build()


def _walk(path: str, builder: CaptionBuilder) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Of one tar: image member by key, and captions by key. A .txt wins over a .json."""
    images: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    has_txt: set[str] = set()
    with open_tar(path) as tar:
        for member in tar:
            key, suffix = os.path.splitext(member.name)
            suffix = suffix.lower()
            if not is_plain(member):
                continue
            if suffix in IMAGE_SUFFIXES:
                if key in images:
                    raise InputError(f"{path!r}, key {key!r}: two images; expected one for each key.")
                images[key] = member.name
            elif suffix == ".txt" or (suffix == ".json" and key not in has_txt):
                content = tar.extractfile(member)
                assert content is not None, "a regular member has content"
                try:
                    texts[key] = _captions_of(content.read(MAX_TEXT_BYTES + 1), suffix)
                    has_txt |= {key} if suffix == ".txt" else set()
                except ValueError as error:
                    builder.refuse(f"{path!r}, member {member.name!r}: {error}")
    return images, texts


def _captions_of(data: bytes, suffix: str) -> list[str]:
    """The captions of a .txt or .json member.

    Raises:
        ValueError: it is too long, not UTF-8, not JSON, or holds no caption; says which.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"more than {MAX_TEXT_BYTES:,} bytes")
    text = data.decode("utf-8")
    value: Any = text
    if suffix == ".json":
        content = json.loads(text)
        value = content.get("captions", content.get("caption")) if isinstance(content, dict) else content
    found = caption_list(value)
    if not found:
        raise ValueError("expected a caption that is not empty")
    return found


def caption_list(value: Any) -> list[str]:
    """Captions in a string or a list of strings, white space squeezed; empty ones and other things are left out."""
    values = value if isinstance(value, list) else [value]
    squeezed = (" ".join(text.split()) for text in values if isinstance(text, str))
    return [text for text in squeezed if text]


def read_parquet_captions(request: CaptionRequest) -> CaptionSet:
    """Parquet files of captions with encoded images, or with image names below the images' folder.

    Columns: captions (`CAPTION_COLUMNS`), images (`packed_images.IMAGE_COLUMNS`, or else `PATH_COLUMNS`), and where
    there are such: `id` (rows with one id are one image), `split`, `caption_id`.

    Raises:
        InputError: a column is missing, an image name leaves its folder, or no file has the split asked for.
    """
    builder = CaptionBuilder()
    splits_there: set[str] = set()
    has_splits = False
    for path in packs_of(request.captions, ".parquet"):
        table, has_images = _caption_columns(path)
        has_splits |= "split" in table.column_names
        for row, values in enumerate(table.to_pylist()):
            if "split" in values:
                splits_there.add(str(values["split"]))
                if str(values["split"]) not in request.splits:
                    continue
            _add_row(builder, request, path, row, values, has_images)
    if has_splits:
        require_splits(request.splits, sorted(splits_there), request.captions)
    return builder.build()


def _caption_columns(path: str) -> tuple[pa.Table, bool]:
    """The columns that say which image has which caption, under fixed names, and whether images are in the file."""
    with open_parquet(path) as parquet:
        there = parquet.schema_arrow.names
        caption = next((name for name in CAPTION_COLUMNS if name in there), None)
        name = next((name for name in PATH_COLUMNS if name in there), None)
        has_images = any(column in there for column in IMAGE_COLUMNS)
        if caption is None or not (has_images or name):
            raise InputError(
                f"{path!r} has columns {there}; expected captions in one of {', '.join(CAPTION_COLUMNS)} and images in "
                f"one of {', '.join(IMAGE_COLUMNS + PATH_COLUMNS)}."
            )
        if has_images:
            image_column(parquet.schema_arrow, path)
        wanted = {"caption": caption} | {key: key for key in ("id", "split", "caption_id") if key in there}
        if not has_images and name:
            wanted["path"] = name
        table = parquet.read(columns=list(wanted.values()))
    return pa.table({key: table.column(name) for key, name in wanted.items()}), has_images


def _add_row(
    builder: CaptionBuilder, request: CaptionRequest, path: str, row: int, values: dict[str, Any], has_images: bool
) -> None:
    where = f"{path!r}, row {row}"
    captions = caption_list(values["caption"])
    name = values.get("path") or values.get("id")
    if not captions or (not has_images and not values.get("path")):
        builder.refuse(f"{where}: expected an image and a caption that is not empty, got {str(values)[:80]}")
        return
    if has_images:
        # Row numbers begin anew in every file, so there the file's name is part of the id.
        key = str(values["id"]) if "id" in values else str(row)
        image_id = key if "id" in values else f"{os.path.splitext(path.rsplit('/', 1)[-1])[0]}:{row}"
        place = f"{path}#{key}"
    else:
        try:
            place = files.join(request.images, str(name))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        image_id = str(values.get("id") or os.path.splitext(str(name))[0])
    ids = [str(values.get("caption_id") or f"{image_id}:{row}") + (f":{i}" if i else "") for i in range(len(captions))]
    builder.add_to(image_id, place, list(zip(ids, captions, strict=True)))
