"""Answers of the questions in the original's corpus: a folder of `QA_fileB.tsv` and `QA_qaid2idx.json` a data set.

A line of the TSV is the question's id and JSON {"labels": [the answer, in one text or several]}. The index says in
which line, from 0, an id is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from alignment.mvptr.tasks.samples import field_of, text_lines
from xmatch.data import files
from xmatch.errors import InputError

TSV, INDEX = "QA_fileB.tsv", "QA_qaid2idx.json"


class AnswerFile(NamedTuple):
    """The answers of one data set: their folder, the lines of the TSV, and the line of each id."""

    folder: str
    lines: list[str]
    rows: Mapping[str, int]

    def answer_of(self, question: str, where: str) -> str:
        """The answer of a question.

        Args:
            question: its id.
            where: what asks for it, for messages.

        Raises:
            InputError: the index lacks it or points elsewhere, or its line is broken; names file and row.
        """
        index, tsv = files.join(self.folder, INDEX), files.join(self.folder, TSV)
        row = self.rows.get(question)
        if row is None:
            raise InputError(
                f"{where}: {index!r} has no question {question!r}. Take corpus and answers of one release."
            )
        if type(row) is not int or not 0 <= row < len(self.lines):
            raise InputError(f"{index!r}: {question!r} is in row {row!r}, but {tsv!r} has {len(self.lines):,} rows.")
        fields = self.lines[row].split("\t")
        if len(fields) != 2:
            raise InputError(
                f"{tsv!r}, row {row}: {len(fields)} columns; expected question id and JSON, parted by a tab."
            )
        if fields[0].strip() != question:
            raise InputError(f"{tsv!r}, row {row}: {fields[0]!r}, but {index!r} says {question!r} is there.")
        return _answer(fields[1], f"{tsv!r}, row {row}")


def _answer(text: str, where: str) -> str:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: no JSON in the second column: {error}.") from error
    labels = field_of(record, "labels", list, where)
    answer = " ".join(labels).strip() if all(isinstance(one, str) for one in labels) else ""
    if not answer:
        raise InputError(f"{where}: expected 'labels' to be a list of texts with an answer in it, got {labels!r:.60}.")
    return answer


def open_answers(listed: str) -> dict[str, AnswerFile]:
    """The answers of data sets by their names.

    Args:
        listed: "NAME=FOLDER", several joined by commas; NAME is what image ids of the data set begin with.

    Raises:
        InputError: it is no such list, or an index is none.
    """
    found = {}
    for one in listed.split(","):
        if not one.strip():
            continue
        name, equals, folder = (part.strip() for part in one.partition("="))
        if not (name and equals and folder) or name in found:
            raise InputError(f"answers are NAME=FOLDER of each data set once, such as gqa=GQA/labels; got {listed!r}.")
        rows = files.read_json(files.join(folder, INDEX))
        if not isinstance(rows, dict):
            raise InputError(f"{files.join(folder, INDEX)!r}: expected an object of rows by question id.")
        found[name] = AnswerFile(folder, text_lines(files.join(folder, TSV)), rows)
    return found


def write_answers(folder: str, answers: Mapping[str, str]) -> None:
    """Write answers by question id as one folder of the original."""
    lines = (f"{name}\t{json.dumps({'labels': [answer]})}\n" for name, answer in answers.items())
    files.write_bytes(files.join(folder, TSV), "".join(lines).encode())
    files.write_json(files.join(folder, INDEX), {name: row for row, name in enumerate(answers)})
