"""The original's pre-training corpus: a TSV of texts, a JSON with the phrases of each line, answers of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.mvptr.answer_files import AnswerFile, open_answers, write_answers
from alignment.mvptr.tasks.samples import Sample, aligned, json_list, text_lines
from xmatch.data import files
from xmatch.errors import InputError

FLICKR = "flickr30k_"
"""How the corpus marks images of Flickr30k; its ids of COCO are in a spelling that is known anyway."""


def own_name(image_id: str) -> str:
    """An image's id in its own data set."""
    return image_id.removeprefix(FLICKR)


class _Line(NamedTuple):
    image_id: str
    label_id: str
    text: str


def read_corpus(path: str, phrases: str, rows: int | None = None, answers: str = "") -> list[Sample]:
    """Lines of a corpus as samples.

    Args:
        path: TSV without a header: image id ("DATASET_ID" or "DATASET_CHUNK_ID"), label id, text. A question's label id
            is "DATASET_qa_ID_QUESTION".
        phrases: JSON, for each line [phrase ids, {word: [phrases made of it]}, label id]; "": no phrases.
        rows: of the model's embeddings, beyond which no phrase may lie; none: not checked.
        answers: of its questions (`answer_files.open_answers`); "": questions are texts without an answer.

    Raises:
        InputError: a line, its phrases or its answer are broken or missing, or an id is out of range; names file and
            row, from 0.
    """
    lines, known = list(_lines(path)), open_answers(answers)
    found = json_list(phrases, "phrases") if phrases else [[[], {}]] * len(lines)
    aligned(lines, found, path, phrases)
    samples = []
    for row, (line, entry) in enumerate(zip(lines, found, strict=True)):
        ids, links = _entry(entry, rows, f"{phrases!r}, row {row}")
        answer = _answer(line, known, f"{path!r}, row {row}") if known else None
        samples.append(Sample(str(row), line.image_id, line.text, ids, links=links, answer=answer))
    return samples


def _answer(line: _Line, known: Mapping[str, AnswerFile], where: str) -> str | None:
    """The answer of a line that is a question."""
    names, image = line.label_id.split("_"), line.image_id.split("_")
    if "qa" not in names:
        return None
    if len(names) < 4 or (names[0], names[-2]) != (image[0], image[-1]):
        raise InputError(
            f"{where}: label id {line.label_id!r} is of no question about image {line.image_id!r}; expected "
            f"'{image[0]}_qa_{image[-1]}_QUESTION'."
        )
    if names[0] not in known:
        raise InputError(
            f"{where}: a question of {names[0]!r}, but answers are given of {', '.join(known)}; add {names[0]}=FOLDER."
        )
    return known[names[0]].answer_of(names[-1], where)


def _lines(path: str) -> Iterator[_Line]:
    for row, line in enumerate(text_lines(path)):
        fields = line.split("\t")
        if len(fields) != 3 or not fields[0]:
            raise InputError(
                f"{path!r}, row {row}: {len(fields)} columns; expected image id, label id and text, parted by tabs."
            )
        yield _Line(*fields)


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
    return ids, _links(entry[1], len(ids), where)


def _links(words: Mapping[Any, Any], count: int, where: str) -> list[list[int]]:
    """Of each of so many phrases, the words that it was made of."""
    links: list[list[int]] = [[] for _ in range(count)]
    for word, places in words.items():
        is_sound = str(word).isdecimal() and isinstance(places, list)
        if not is_sound or any(type(place) is not int or not 0 <= place < count for place in places):
            raise InputError(
                f"{where}: word {word!r} is linked with {places!r:.40}; expected places of {count} phrases."
            )
        for place in places:
            links[place].append(int(word))
    return [sorted(one) for one in links]


def write_corpus(path: str, phrases: str, samples: Sequence[Sample], answers: str = "") -> None:
    """Write samples as a corpus of the original; label ids are 0 but for questions, whose ids are their rows.

    Args:
        path: of the TSV.
        phrases: of the JSON.
        samples: their `links` may be none.
        answers: folder of the answers, if samples have any.

    Raises:
        InputError: a text holds a tab or a line's end, or answers have no folder.
    """
    if not answers and any(sample.answer is not None for sample in samples):
        raise InputError("samples have answers; give the folder that they are to be written to.")
    labels = []
    for row, sample in enumerate(samples):
        parts = sample.image_id.split("_")
        labels.append("0" if sample.answer is None else f"{parts[0]}_qa_{parts[-1]}_{row}")
        if set("\t\r\n") & set(sample.image_id + sample.text):
            raise InputError(f"sample {row} holds a tab or a line's end, which the TSV cannot; replace it by a space.")
    lines = (f"{sample.image_id}\t{label}\t{sample.text}\n" for sample, label in zip(samples, labels, strict=True))
    files.write_bytes(path, "".join(lines).encode())
    entries = []
    for sample, label in zip(samples, labels, strict=True):
        words: dict[str, list[int]] = {}
        for place, own in enumerate(sample.links or ()):
            for word in own:
                words.setdefault(str(word), []).append(place)
        entries.append([list(sample.phrases), words, 0 if label == "0" else label])
    files.write_json(phrases, entries)
    if answers:
        given = {str(row): sample.answer for row, sample in enumerate(samples) if sample.answer is not None}
        write_answers(answers, given)
