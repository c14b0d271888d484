"""JSON lines, and ids that are whole numbers in one file and texts in the next.

Here ids are strings. The originals' text ids (`query_id`) are whole numbers and their image ids strings in features and
predictions; what a file holds is read either way, but never both kinds in one column: 1 and "1" would be one id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from xmatch.data import files
from xmatch.errors import InputError

WHOLE = re.compile(r"0|-?[1-9][0-9]*")
"""A whole number as Python prints it: these ids survive the way to a number and back."""
SHOWN = 3
"""Lines named in a message."""


class Line(NamedTuple):
    """One line of a file: its number from 1, and its object."""

    number: int
    entry: dict[str, Any]

    def value(self, name: str, kind: type | tuple[type, ...], path: str) -> Any:
        """One field.

        Raises:
            InputError: it is missing, or of another type; names file and line.
        """
        if name not in self.entry:
            raise InputError(
                f"{path!r}, line {self.number}: no field {name!r}; it has {', '.join(map(repr, self.entry)) or 'none'}."
            )
        found = self.entry[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            expected = " or ".join(one.__name__ for one in kinds)
            raise InputError(
                f"{path!r}, line {self.number}: {name!r} must be {expected}, got {type(found).__name__} {found!r:.60}."
            )
        return found

    def texts(self, name: str, path: str) -> list[str]:
        """A field that is a list of texts.

        Raises:
            InputError: it is something else; names file and line.
        """
        found: list[Any] = self.value(name, list, path)
        for one in found:
            if not isinstance(one, str):
                raise InputError(
                    f"{path!r}, line {self.number}: {name!r} must hold texts, got {type(one).__name__} {one!r:.60}."
                )
        return found


def read_lines(path: str) -> Iterator[Line]:
    """The objects of a file of JSON lines; blank lines are passed over.

    Raises:
        InputError: a line is no JSON object; names file and line.
    """
    filesystem, inside = files.filesystem_of(path)
    with files.reading(path), filesystem.open_input_stream(inside, compression=None) as stream:
        left, number = b"", 0
        while True:
            block = stream.read(1 << 22)
            *whole, left = (left + block).split(b"\n")
            for line in whole if block else [left]:
                number += 1
                if line.strip():
                    yield Line(number, _object(line, path, number))
            if not block:
                return


def _object(line: bytes, path: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path!r}, line {number} is not JSON: {error}. It may be cut short; write the file again."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path!r}, line {number}: expected an object, got {type(found).__name__} {found!r:.60}.")
    return found


def write_lines(path: str, entries: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines atomically, as the originals do; how many."""
    count = 0
    with files.open_atomic(path) as sink:
        for entry in entries:
            sink.write((json.dumps(entry) + "\n").encode())
            count += 1
    return count


def id_texts(values: Sequence[tuple[int, Any]], name: str, path: str) -> list[str]:
    """Ids as strings.

    Args:
        values: pairs of a line number and an id.
        name: of the field.
        path: of the file.

    Raises:
        InputError: ids are neither whole numbers nor texts, or some are one and some the other; counted and named.
    """
    wrong = [(line, value) for line, value in values if type(value) not in (int, str)]
    if wrong:
        raise InputError(
            f"{path!r}: {len(wrong):,} of {len(values):,} values of {name} are no ids: {_said(wrong)}; expected whole "
            "numbers, or texts."
        )
    numbers = [one for one in values if type(one[1]) is int]
    texts = [one for one in values if type(one[1]) is str]
    if numbers and texts:
        fewer = min(numbers, texts, key=len)
        raise InputError(
            f"{path!r}: ids of mixed types in {name}: {len(numbers):,} whole numbers and {len(texts):,} texts "
            f"({_said(fewer)}); expected one kind, for 1 and '1' would become one id."
        )
    return [str(value) for _, value in values]


def _said(values: Sequence[tuple[int, Any]]) -> str:
    return ", ".join(f"line {line} has {value!r:.40}" for line, value in values[:SHOWN])


def unique_ids(values: Sequence[tuple[int, Any]], name: str, path: str) -> list[str]:
    """`id_texts` of ids that may each come once.

    Raises:
        InputError: one comes twice; names both lines.
    """
    found = id_texts(values, name, path)
    first: dict[str, int] = {}
    for (line, _), one in zip(values, found):
        if one in first:
            raise InputError(
                f"{path!r}, line {line}: {name} {one!r} was in line {first[one]} before; expected it once."
            )
        first[one] = line
    return found


def written_id(text: str, *, as_number: bool) -> int | str:
    """An id as an original writes it: a whole number, where it is one and numbers are meant, else text."""
    return int(text) if as_number and WHOLE.fullmatch(text) else text
