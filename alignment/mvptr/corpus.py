"""The original's pre-training corpus: a TSV of texts, and a JSON with the phrases of each line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from alignment.mvptr.tasks.samples import Sample, aligned, json_list, text_lines
from xmatch.data import files
from xmatch.errors import InputError

FLICKR = "flickr30k_"
"""How the corpus marks images of Flickr30k; its ids of COCO are in a spelling that is known anyway."""


def own_name(image_id: str) -> str:
    """An image's id in its own data set."""
    return image_id.removeprefix(FLICKR)


def read_corpus(path: str, phrases: str, rows: int | None = None) -> list[Sample]:
    """Lines of a corpus as samples.

    Args:
        path: TSV without a header: image id ("DATASET_ID" or "DATASET_CHUNK_ID"), label id, text.
        phrases: JSON, for each line [phrase ids, {word: [phrases made of it]}, label id]; "": no phrases.
        rows: of the model's embeddings, beyond which no phrase may lie; none: not checked.

    Raises:
        InputError: a line or its phrases are broken, or an id is out of range; names file and row, from 0.
    """
    lines = list(_lines(path))
    found = json_list(phrases, "phrases") if phrases else [[[], {}]] * len(lines)
    aligned(lines, found, path, phrases)
    samples = []
    for row, ((image_id, text), entry) in enumerate(zip(lines, found, strict=True)):
        ids, links = _entry(entry, rows, f"{phrases!r}, row {row}")
        samples.append(Sample(str(row), image_id, text, ids, links=links))
    return samples


def _lines(path: str) -> Iterator[tuple[str, str]]:
    for row, line in enumerate(text_lines(path)):
        fields = line.split("\t")
        if len(fields) != 3 or not fields[0]:
            raise InputError(
                f"{path!r}, row {row}: {len(fields)} columns; expected image id, label id and text, parted by tabs."
            )
        yield fields[0], fields[2]


def _entry(entry: Any, rows: int | None, where: str) -> tuple[list[int], list[list[int]]]:
    """Phrase ids, and for each the words that it was made of."""
    if (
        not isinstance(entry, list)
        or len(entry) < 2
        or not isinstance(entry[0], list)
        or not isinstance(entry[1], dict)
    ):
        raise InputError(f"{where}: expected [phrase ids, {{word: [phrases]}}, …], got {entry!r:.60}.")
    ids: list[int] = entry[0]
    wrong = [one for one in ids if type(one) is not int or one < 0 or (rows is not None and one >= rows)]
    if wrong:
        raise InputError(f"{where}: phrase id {wrong[0]!r} is out of range; the model has {rows} rows of embeddings.")
    links: list[list[int]] = [[] for _ in ids]
    for word, places in entry[1].items():
        is_sound = str(word).isdecimal() and isinstance(places, list)
        if not is_sound or any(type(place) is not int or not 0 <= place < len(ids) for place in places):
            raise InputError(
                f"{where}: word {word!r} is linked with {places!r:.40}; expected places of {len(ids)} phrases."
            )
        for place in places:
            links[place].append(int(word))
    return ids, [sorted(words) for words in links]


def write_corpus(path: str, phrases: str, samples: Sequence[Sample]) -> None:
    """Write samples as a corpus of the original, label ids 0.

    Args:
        path: of the TSV.
        phrases: of the JSON.
        samples: their `links` may be none.

    Raises:
        InputError: a text holds a tab or a line's end.
    """
    for row, sample in enumerate(samples):
        if set("\t\r\n") & set(sample.image_id + sample.text):
            raise InputError(f"sample {row} holds a tab or a line's end, which the TSV cannot; replace it by a space.")
    lines = (f"{sample.image_id}\t0\t{sample.text}\n" for sample in samples)
    files.write_bytes(path, "".join(lines).encode())
    entries = []
    for sample in samples:
        words: dict[str, list[int]] = {}
        for place, own in enumerate(sample.links or ()):
            for word in own:
                words.setdefault(str(word), []).append(place)
        entries.append([list(sample.phrases), words, 0])
    files.write_json(phrases, entries)
