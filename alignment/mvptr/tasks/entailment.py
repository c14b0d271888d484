"""Visual entailment: whether an image entails a sentence, contradicts it, or neither (SNLI-VE)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.tasks.samples import Sample, aligned, field_of, json_list, text_lines
from xmatch.data import files
from xmatch.errors import InputError

LABELS = ("contradiction", "neutral", "entailment")
"""By number, as the original counts them."""
RESULTS_FILE = "predictions.jsonl"
PUBLISHED: Mapping[str, Mapping[str, float]] = {"val": {"accuracy": 80.30}, "test": {"accuracy": 80.17}}
"""What MVPTR's own page prints for SNLI-VE, in per cent."""


def read_entailment(path: str, phrases: str, vocabulary: PhraseVocabulary | None) -> list[Sample]:
    """Sentences of a `snli_ve_*.jsonl` and their phrases.

    Args:
        path: a line each: {pairID, Flickr30K_ID, sentence2, gold_label}.
        phrases: `*_sgs.json`, a list of [phrases, pairID] in the same order; "": no phrases.
        vocabulary: gives the phrases their ids; none only without phrases.

    Raises:
        InputError: a line is broken, a label is unknown, or the phrases are of another pair; names file and row, from
            0.
    """
    records = list(_lines(path))
    found = json_list(phrases, "phrases") if phrases else [[[], record.get("pairID")] for record in records]
    aligned(records, found, path, phrases)
    samples = []
    for row, (record, own) in enumerate(zip(records, found, strict=True)):
        where = f"{path!r}, row {row}"
        pair_id, image_id, text, label = (
            str(field_of(record, name, (str, int), where))
            for name in ("pairID", "Flickr30K_ID", "sentence2", "gold_label")
        )
        if label not in LABELS:
            raise InputError(f"{where}: unknown gold_label {label!r}; expected one of {', '.join(LABELS)}.")
        tuples = _phrases(own, pair_id, f"{phrases!r}, row {row}")
        ids = vocabulary.ids(tuples) if vocabulary is not None else []
        samples.append(Sample(pair_id, image_id, text, ids, labels=[LABELS.index(label)], scores=[1.0], kind=label))
    return samples


def _lines(path: str) -> Iterable[Mapping[str, Any]]:
    for row, line in enumerate(text_lines(path)):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path!r}, row {row}: no JSON ({error}). Copy the file again.") from error
        if not isinstance(record, dict):
            raise InputError(f"{path!r}, row {row}: expected an object, got {record!r:.60}.")
        yield record


def _phrases(entry: Any, pair_id: str, where: str) -> list[Sequence[str]]:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], list):
        raise InputError(f"{where}: expected [phrases, pairID], got {entry!r:.60}.")
    if str(entry[1]) != pair_id:
        raise InputError(
            f"{where}: phrases of pair {entry[1]!r:.60}, but the sentences have {pair_id!r} there. Take both of one "
            "split."
        )
    if not all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in entry[0]):
        raise InputError(f"{where}: expected phrases as lists of one to three texts, got {entry[0]!r:.60}.")
    return entry[0]


def write_results(path: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Write predictions as JSON lines {pairID, prediction}.

    Args:
        path: of the file.
        pairs: pair id and label by name.
    """
    lines = (json.dumps({"pairID": one, "prediction": label}, ensure_ascii=False) for one, label in pairs)
    files.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def read_results(path: str) -> list[tuple[str, str]]:
    """A file of predictions as (pair id, label).

    Raises:
        InputError: a line is broken, or its label is unknown; names the row.
    """
    found = []
    for row, record in enumerate(_lines(path)):
        where = f"{path!r}, row {row}"
        label = field_of(record, "prediction", str, where)
        if label not in LABELS:
            raise InputError(f"{where}: unknown label {label!r}; expected one of {', '.join(LABELS)}.")
        found.append((str(field_of(record, "pairID", (str, int), where)), label))
    return found
