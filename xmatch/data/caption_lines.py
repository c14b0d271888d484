"""Captions of LXMERT's and Karpathy's JSON as numbered lines, cut into shards that are read each on its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from xmatch.data import files
from xmatch.data.json_records import is_json_list, read_records
from xmatch.errors import InputError


class CaptionForm(NamedTuple):
    """What is taken of a caption file.

    Attributes:
        path: of the file; a list is LXMERT's, an object Karpathy's.
        split: of Karpathy's; null takes every split.
        source: language source of LXMERT's.
    """

    path: str
    split: str | None
    source: str


class Cut(NamedTuple):
    """Where a shard's captions are.

    Attributes:
        start: first byte of the record that holds the first of them.
        stop: byte after the record that holds the last.
        skip: captions of the first record that belong to the shard before.
        captions: how many.
    """

    start: int
    stop: int
    skip: int
    captions: int


def cut_captions(form: CaptionForm, captions_per_shard: int) -> Iterator[Cut]:
    """Cut a file into shards of so many captions, the last of fewer, by one pass in memory for a few records.

    Raises:
        InputError: it is not there, is not such a file, or holds no captions that are wanted.
    """
    is_lxmert, is_empty = is_json_list(form.path), True
    start = skip = count = stop = 0
    for value, begin, end in read_records(form.path, "images"):
        there, used = len(_captions_of(value, form, is_lxmert)), 0
        while used < there:
            if not count:
                start, skip = begin, used
            taken = min(there - used, captions_per_shard - count)
            used, count, stop, is_empty = used + taken, count + taken, end, False
            if count == captions_per_shard:
                yield Cut(start, stop, skip, count)
                count = 0
    if count:
        yield Cut(start, stop, skip, count)
    if is_empty:
        raise InputError(f"{form.path!r} holds no captions (split {form.split!r}, {form.source!r}).")


def read_cut(form: CaptionForm, cut: Cut) -> list[str]:
    """The captions of a shard in the file's order, line feeds within them made spaces.

    Raises:
        InputError: the file was changed since it was cut.
    """
    filesystem, inside = files.filesystem_of(form.path)
    with files.reading(form.path), filesystem.open_input_file(inside) as source:
        source.seek(cut.start)
        data = bytes(source.read(cut.stop - cut.start))
    is_lxmert = is_json_list(form.path)
    try:
        values = json.loads(b"[" + data + b"]")
    except ValueError as error:
        raise InputError(
            f"{form.path!r} was changed while it was read ({error}); leave it alone until the end."
        ) from error
    texts = [text for value in values for text in _captions_of(value, form, is_lxmert)]
    return texts[cut.skip : cut.skip + cut.captions]


def _captions_of(value: Any, form: CaptionForm, is_lxmert: bool) -> list[str]:
    """Captions of one record; none where it is of another split or source."""
    try:
        if is_lxmert:
            texts = list(value["sentf"].get(form.source, []))
        else:
            texts = [s["raw"] for s in value["sentences"]] if form.split in (None, value["split"]) else []
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{form.path!r} is no LXMERT or Karpathy caption file: {error}.") from error
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{form.path!r} holds a caption that is no text: {text!r:.40}. Mend it there.")
    return [" ".join(text.split("\n")) for text in texts]
