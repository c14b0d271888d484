"""What a model has seen, and whether a benchmark is part of it.

A training run writes ids and content hashes of its photos and captions beside the model's weights. Before a benchmark
is measured, its images are looked up there: by id in every spelling (`xmatch.data.image_keys`), by the bytes of the
photo, and by the words of the captions. Data sets print the same sentence with or without a space before the full
stop, so captions are compared by their words: Unicode NFKC, lower case, everything but letters, marks and digits taken
as a space.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionSet
from xmatch.data.image_keys import image_keys
from xmatch.data.packed_images import read_packed, split_packed
from xmatch.errors import InputError

SEEN_FILE = "training_data.parquet"
"""Name of the record beside a model's weights."""
SEEN_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("role", pa.string()),
        ("id", pa.string()),
        ("image_id", pa.string()),
        ("key", pa.string()),
        ("content", pa.string()),
    ]
)
"""One row an image or caption seen. kind: image or caption; role: train or text_pretraining; id: the image's or
caption's own; image_id: of a caption, the image it describes, else null; key: of that image as `image_key` has it, or
null; content: SHA-256 in hexadecimal of the photo's file or of the caption's folded words, null for a photo unread."""
OFFENDERS_SHOWN = 5

Role = Literal["train", "text_pretraining"]


class Overlap(NamedTuple):
    """How much of a benchmark a model has seen. All but `first` are counts; images of the benchmark where not said.

    captions_by_text: captions of the benchmark that were seen word for word; alone they are reported, not refused,
        for short stock sentences recur among different photos.
    images_by_captions: at least two of its captions (all, if it has fewer) were seen with one and the same image.
    images_leaked: by id, content or captions.
    photos_compared: whose bytes could be compared with any that were seen.
    first: the first leaked images in words.
    """

    images: int
    captions: int
    images_by_id: int
    images_by_content: int
    captions_by_text: int
    images_by_captions: int
    images_leaked: int
    photos_compared: int
    first: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a result's JSON."""
        return self._asdict() | {"first": list(self.first)}


def seen_record(captions: CaptionSet, *, role: Role, threads: int = 4) -> pa.Table:
    """A table of SEEN_SCHEMA of everything in a captioned set.

    Args:
        captions: what is learnt from.
        role: text_pretraining saw the captions only, so its images have no rows of their own.
        threads: that read photos; 0 leaves their content null.
    """
    keys = pa.array(image_keys(captions.image_ids, captions.image_paths), pa.string())
    rows = pa.array(captions.caption_image, pa.int64())
    ids = pa.array(captions.image_ids, pa.string())
    content = caption_hashes(captions.captions)
    tables = [
        _table("caption", role, pa.array(captions.caption_ids, pa.string()), ids.take(rows), keys.take(rows), content)
    ]
    if role == "train":
        photos = photo_hashes(captions.image_paths, threads)
        tables.append(_table("image", role, ids, pa.nulls(len(ids), pa.string()), keys, photos))
    return _tidy(tables)


def write_seen(tables: Sequence[pa.Table], path: str) -> None:
    """Write records as one Parquet file, each row once, sorted; equal records in any order give equal bytes."""
    files.write_parquet(path, _tidy(tables))


def read_seen(path: str) -> pa.Table:
    """A record written by `write_seen`.

    Raises:
        InputError: it is not there, broken, or not such a record.
    """
    table = files.read_parquet(path)
    if table.schema.names != SEEN_SCHEMA.names:
        raise InputError(
            f"{path!r} is no record of training data: expected columns {', '.join(SEEN_SCHEMA.names)}, "
            f"got {', '.join(table.schema.names)}."
        )
    return table.cast(SEEN_SCHEMA)


def overlap(seen: pa.Table, captions: CaptionSet, *, threads: int = 4) -> Overlap:
    """How much of a benchmark is in a record; `threads` as in `seen_record`."""
    count = len(captions.image_ids)
    of_images = pc.equal(seen["kind"], "image")
    photos, texts = seen.filter(of_images), seen.filter(pc.invert(of_images))
    name_of_key = dict(zip(seen["key"].to_pylist(), pc.coalesce(seen["image_id"], seen["id"]).to_pylist()))
    name_of_key.pop(None, None)
    keys = image_keys(captions.image_ids, captions.image_paths)
    by_id = {row: f"seen as {name_of_key[key]!r}" for row, key in enumerate(keys) if key in name_of_key}
    name_of_photo = dict(zip(photos["content"].to_pylist(), photos["id"].to_pylist()))
    name_of_photo.pop(None, None)
    hashes = photo_hashes(captions.image_paths, threads if name_of_photo else 0).to_pylist()
    by_content = {row: f"same file as {name_of_photo[h]!r}" for row, h in enumerate(hashes) if h in name_of_photo}
    num_texts, by_captions = _seen_captions(texts, captions)
    leaked = sorted({*by_id, *by_content, *by_captions})
    reasons = ({**by_captions, **by_content, **by_id}[row] for row in leaked[:OFFENDERS_SHOWN])
    return Overlap(
        images=count,
        captions=len(captions.captions),
        images_by_id=len(by_id),
        images_by_content=len(by_content),
        captions_by_text=num_texts,
        images_by_captions=len(by_captions),
        images_leaked=len(leaked),
        photos_compared=sum(h is not None for h in hashes),
        first=tuple(f"{captions.image_ids[row]!r} ({why})" for row, why in zip(leaked, reasons)),
    )


def require_disjoint(found: Overlap, allow: bool, *, how: str = "--allow_overlap true") -> None:
    """Refuse a benchmark that the model has seen.

    Args:
        found: as `overlap` gives it.
        allow: measure all the same; the overlap then stands in the result.
        how: the argument that allows it, for the message.

    Raises:
        InputError: an image is leaked and `allow` is false.
    """
    if allow or not found.images_leaked:
        return
    raise InputError(
        f"the model has seen {found.images_leaked:,} of the {found.images:,} images of this benchmark in training "
        f"({found.images_by_id:,} by id, {found.images_by_content:,} by content, {found.images_by_captions:,} by their "
        f"captions), the first are {', '.join(found.first)}. Its figures would not be comparable. Choose another "
        f"split, train without these images, or give {how} to measure all the same."
    )


def caption_hashes(texts: Sequence[str]) -> pa.Array:
    """SHA-256 of each caption's folded words, in hexadecimal; where there are no words, of the folded text itself."""
    lower = pc.utf8_lower(pc.utf8_normalize(pa.array(texts, pa.string()), form="NFKC"))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"[^\pL\pM\pN]+", " "))
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, r"\s+", " "))
    folded = pc.if_else(pc.equal(words, ""), bare, words)
    return pa.array([hashlib.sha256(text.encode()).hexdigest() for text in folded.to_pylist()], pa.string())


def photo_hashes(paths: Sequence[str], threads: int) -> pa.Array:
    """SHA-256 of each photo's file, in hexadecimal; null where it is not a local file that can be read."""
    if threads < 1:
        return pa.nulls(len(paths), pa.string())
    with ThreadPoolExecutor(threads) as pool:
        return pa.array(pool.map(_photo_hash, paths), pa.string())


def _photo_hash(path: str) -> str | None:
    if not path or files.is_uri(path):
        return None
    packed = split_packed(path)
    try:
        return hashlib.sha256(read_packed(*packed)).hexdigest() if packed else files.sha256(path)
    except (OSError, InputError):
        return None


def _seen_captions(texts: pa.Table, captions: CaptionSet) -> tuple[int, dict[int, str]]:
    """Captions seen word for word; and the images known by them, with the reason.

    An image is known when two of its different captions were seen with the same image. Two stock sentences that were
    seen with two different images say nothing.
    """
    hashes = np.asarray(caption_hashes(captions.captions).to_pylist(), dtype=object)
    texts = texts.filter(pc.is_in(texts["content"], pa.array(hashes, pa.string())))
    groups = pc.coalesce(texts["key"], texts["image_id"]).to_pylist()
    seen_with: dict[str, dict[str | None, str | None]] = defaultdict(dict)
    for content, group, name in zip(texts["content"].to_pylist(), groups, texts["image_id"].to_pylist()):
        seen_with[content][group] = name
    own: list[set[str]] = [set() for _ in captions.image_ids]
    for row, content in zip(captions.caption_image.tolist(), hashes.tolist()):
        own[row].add(content)
    found = {}
    for row, contents in enumerate(own):
        names = {group: name for content in contents for group, name in seen_with.get(content, {}).items()}
        counts = Counter(group for content in contents for group in seen_with.get(content, ()))
        best, times = max(counts.items(), key=lambda item: (item[1], str(item[0])), default=(None, 0))
        if times >= min(2, len(contents)) and times:
            found[row] = f"{times} of its {len(contents)} captions seen with {names[best]!r}"
    return sum(content in seen_with for content in hashes.tolist()), found


def _table(kind: str, role: Role, ids: pa.Array, image_ids: pa.Array, keys: pa.Array, content: pa.Array) -> pa.Table:
    constant = [pa.array([value] * len(ids), pa.string()) for value in (kind, role)]
    return pa.table([*constant, ids, image_ids, keys, content], schema=SEEN_SCHEMA)


def _tidy(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables, each once, sorted by every column; one chunk a column."""
    whole = pa.concat_tables([SEEN_SCHEMA.empty_table(), *(table.cast(SEEN_SCHEMA) for table in tables)])
    names = SEEN_SCHEMA.names
    unique = whole.group_by(names).aggregate([]).select(names)
    return unique.sort_by([(name, "ascending") for name in names]).combine_chunks()
