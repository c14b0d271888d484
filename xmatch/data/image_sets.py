"""Image sets: universal ids, path conventions, and reading them from folders, id lists, tars or Parquet.

The universal id of an image is "SET/IMAGE", such as "coco_minival/COCO_val2014_000000000042" or
"open_images/14928b4f367c217e" (Vokenization, vision keys).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from xmatch.data import files
from xmatch.data.id_lists import cut_ids, read_ids
from xmatch.data.image_listing import LISTING_SCHEMA
from xmatch.data.packed_images import MAX_ENCODED_BYTES, is_plain, open_tar
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OPEN_IMAGES_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where the images of a set are, and in what form."""

    root: str = ""
    """Folder of the images, of the tars, or of the Parquet files."""
    set_name: str = "images"
    """First part of every id: coco_minival, vg_nococo, cc_train, open_images, open_images_500k, or a name of yours."""
    kind: Literal["folder", "ids", "webdataset", "parquet"] = "folder"
    """`folder`: image files, sorted by name. `ids`: the images of an .ids file by the set's path rule. `webdataset`:
    tars, key = file stem. `parquet`: columns `id` and `bytes`."""
    ids_file: str | None = None
    """The .ids file of kind `ids`: one image id a line."""
    max_images: int | None = None
    """Take only the first so many images (folder and ids)."""

    def __post_init__(self) -> None:
        """Refuse sets that cannot be named or found."""
        if not self.set_name or "/" in self.set_name:
            raise InputError(f"set_name must be a name without '/', got {self.set_name!r}.")
        if self.kind == "ids" and not self.ids_file:
            raise InputError("images of kind 'ids' need ids_file, a file with one image id a line.")
        if self.max_images is not None and self.max_images < 1:
            raise InputError(f"max_images must be at least 1, got {self.max_images}.")


def universal_id(set_name: str, image_id: str) -> str:
    """The id of an image among all sets."""
    return f"{set_name}/{image_id}"


def split_universal_id(uid: str) -> tuple[str, str]:
    """Set name and image id of a universal id.

    Raises:
        InputError: it has no set name.
    """
    set_name, separator, image_id = uid.partition("/")
    if not separator or not set_name or not image_id:
        raise InputError(f"{uid!r} is no universal image id; expected SET/IMAGE, such as vg_nococo/1000.")
    return set_name, image_id


def image_path(set_name: str, image_id: str, root: str) -> str:
    """Path of an image by the conventions of the originals (golden `naming.json`).

    Args:
        set_name: coco_*, vg_*, cc_* or open_images*, whose subset names may have any number of parts.
        image_id: as in the set's .ids file.
        root: the data folder of that family, such as data/mscoco.

    Raises:
        InputError: the id leaves the root, or is not spelt as its set spells ids.
    """
    if set_name.startswith("open_images") and not OPEN_IMAGES_ID.fullmatch(image_id):
        raise InputError(f"Open Images ids have 16 hexadecimal digits, got {image_id!r} in set {set_name!r}.")
    if "COCO" in image_id:
        if "_" not in image_id:
            raise InputError(f"COCO's ids are COCO_SPLIT_NUMBER, got {image_id!r} in set {set_name!r}.")
        return files.join(root, "images", image_id.split("_")[1], f"{image_id}.jpg")
    if set_name.startswith("cc"):
        return files.join(root, "images", image_id.split("_")[0], image_id)
    return files.join(root, "images", f"{image_id}.jpg")


def lxmert_image_path(image_id: str, root: str) -> str:
    """Path of a LXMERT caption's image below `root`: by the set's rule, or flat where the rule's folders are not."""
    flat = files.join(root, f"{image_id}.jpg")
    ruled = image_path("coco" if "COCO" in image_id else "vg", image_id, root)
    return flat if files.exists(flat) else ruled


def plan_image_shards(source: ImageSource, images_per_shard: int) -> list[Shard]:
    """Shards of an image set: consecutive images, or one per tar or Parquet file.

    Raises:
        InputError: the folder or id file is not there, holds no images, or a link in it leads out.
    """
    if source.kind in ("webdataset", "parquet"):
        parts = files.list_files(source.root, ".tar" if source.kind == "webdataset" else ".parquet")
        if not parts:
            raise InputError(f"no {source.kind} files in {source.root!r}; expected *.tar or *.parquet there.")
        files.require_inside(source.root, parts)
        return [Shard(shard_name(index), part, 0, 0) for index, part in enumerate(parts)]
    if source.kind == "ids":
        return _plan_ids(source, source.ids_file or "", images_per_shard)
    names = _names(source)
    count = len(names)
    files.require_inside(source.root, (_place(source, name) for name in names))
    return [
        Shard(shard_name(index), source.root, start, min(count, start + images_per_shard))
        for index, start in enumerate(range(0, count, images_per_shard))
    ]


def _plan_ids(source: ImageSource, ids_file: str, images_per_shard: int) -> list[Shard]:
    """Shards by byte offsets of the list of ids, which may be long."""
    cuts = list(cut_ids(ids_file, images_per_shard, source.max_images))
    if not cuts:
        raise InputError(f"no images in {ids_file!r}; expected one image id a line.")
    for start, stop in cuts:
        files.require_inside(source.root, (_place(source, name) for name in read_ids(ids_file, start, stop)))
    return [Shard(shard_name(index), ids_file, start, stop) for index, (start, stop) in enumerate(cuts)]


def _place(source: ImageSource, name: str) -> str:
    """Where an image lies (kinds folder and ids)."""
    is_id = source.kind == "ids"
    return image_path(source.set_name, name, source.root) if is_id else files.join(source.root, name)


def _names(source: ImageSource) -> list[str]:
    """Names of a folder's image files, in order."""
    if not files.is_folder(source.root):
        raise InputError(f"image folder {source.root!r} does not exist; give the folder with the image files.")
    names = [path.rsplit("/", 1)[-1] for path in files.list_files(source.root)]
    names = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise InputError(f"no images in {source.root!r}; expected {', '.join(IMAGE_SUFFIXES)} files.")
    return names[: source.max_images]


class ImageReader:
    """Reads a shard of an image set as rows of (id, uri, bytes); null bytes: the image is read from its uri."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self._cached: list[str] | None = None

    def __call__(self, shard: Shard) -> pa.Table:
        """All rows of a shard."""
        if self.source.kind == "webdataset":
            return self._table(list(read_tar(shard.source)))
        if self.source.kind == "parquet":
            return self._table(list(_read_parquet(shard.source)))
        rows: list[tuple[str, str | None, bytes | None]] = []
        for name in self._names_of(shard):
            stem = name if self.source.kind == "ids" else os.path.splitext(name)[0]
            rows.append((stem, _place(self.source, name), None))
        files.require_inside(self.source.root, [uri for _, uri, _ in rows if uri])
        return self._table(rows)

    def _names_of(self, shard: Shard) -> list[str]:
        if self.source.kind == "ids":
            return read_ids(shard.source, shard.start, shard.stop)
        if self._cached is None:
            self._cached = _names(self.source)
        return self._cached[shard.start : shard.stop]

    def _table(self, rows: list[tuple[str, str | None, bytes | None]]) -> pa.Table:
        ids = [universal_id(self.source.set_name, name) for name, _, _ in rows]
        columns = [pa.array(ids), pa.array([row[1] for row in rows]), pa.array([row[2] for row in rows], pa.binary())]
        return pa.table(
            [column.cast(f.type) for column, f in zip(columns, LISTING_SCHEMA, strict=True)], LISTING_SCHEMA
        )


def read_tar(path: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Images of a WebDataset tar as (key, uri, bytes); nothing is extracted, so no name can leave the tar.

    An image larger than any that is decoded has no bytes: who reads it by its uri hears why.

    Raises:
        InputError: the tar is broken.
    """
    with open_tar(path) as tar:
        for member in tar:
            stem, suffix = os.path.splitext(member.name)
            if is_plain(member) and suffix.lower() in IMAGE_SUFFIXES:
                content = tar.extractfile(member)
                assert content is not None, "a regular member has content"
                yield stem, f"{path}#{member.name}", content.read() if member.size <= MAX_ENCODED_BYTES else None


def _read_parquet(path: str) -> Iterator[tuple[str, str, bytes]]:
    table = files.read_parquet(path)
    if "image" in table.column_names and pa.types.is_struct(table.schema.field("image").type):
        table = table.append_column("bytes", pa.array([row["bytes"] for row in table.column("image").to_pylist()]))
    if not {"id", "bytes"} <= set(table.column_names):
        raise InputError(f"{path!r} has columns {table.column_names}; images need `id` and `bytes`.")
    for name, data in zip(table.column("id").to_pylist(), table.column("bytes").to_pylist(), strict=True):
        yield str(name), f"{path}#{name}", data or b""


def parquet_rows(path: str) -> int:
    """Rows of a Parquet file, from its footer."""
    filesystem, inside = files.filesystem_of(path)
    with filesystem.open_input_file(inside) as source:
        return int(pq.ParquetFile(source).metadata.num_rows)
