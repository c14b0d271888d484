"""Records of a large JSON file one at a time, each with its place in bytes, in memory for a few of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xmatch.data import files
from xmatch.errors import InputError

BLOCK = 1 << 20
SPACES = " \t\n\r"
AFTER_VALUES = set(SPACES + ",:]}")


class Record(NamedTuple):
    """One value of a list, and the bytes of the file from `start` to before `stop` that hold it."""

    value: Any
    start: int
    stop: int


def read_records(path: str, key: str) -> Iterator[Record]:
    """The items of a file that is a JSON list, or of the list that a JSON object has under `key`.

    Raises:
        InputError: the file is not there, is not JSON, or has no such list; names it and the byte.
    """
    filesystem, inside = files.filesystem_of(path)
    with files.reading(path), filesystem.open_input_stream(inside, compression=None) as stream:
        text = _Text(stream.read)
        try:
            yield from _items_of(text, key, path)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                f"{path!r} is not JSON near byte {text.place:,}: {reason}. Mend or regenerate the file."
            ) from error


def is_json_list(path: str) -> bool:
    """Whether a JSON file holds a list rather than an object, by its first bytes."""
    filesystem, inside = files.filesystem_of(path)
    with files.reading(path), filesystem.open_input_stream(inside, compression=None) as stream:
        return bytes(stream.read(BLOCK)).lstrip().startswith(b"[")


def _items_of(text: _Text, key: str, path: str) -> Iterator[Record]:
    if text.next() == "[":
        yield from _list_items(text)
    elif text.next() == "{":
        yield from _list_under(text, key, path)
    else:
        raise InputError(f"{path!r} is neither a JSON list nor a JSON object with a list {key!r}.")
    if text.next():
        raise text.error("Extra data")


def _list_under(text: _Text, key: str, path: str) -> Iterator[Record]:
    is_found = False
    for _ in text.parts("{", "}"):
        if text.next() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        name = text.value()
        text.expect(":")
        if name == key and text.next() == "[":
            is_found = True
            yield from _list_items(text)
        else:
            text.value()
    if not is_found:
        raise InputError(f"{path!r} has no list {key!r}.")


def _list_items(text: _Text) -> Iterator[Record]:
    for start in text.parts("[", "]"):
        yield Record(text.value(), start, text.place)


class _Text:
    """A file's text, as much of it as is being looked at.

    Attributes:
        place: byte of the file at which the next value is looked for.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._utf8 = read, codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self.place = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in SPACES:
                end += 1
            self._move(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Step over a character that must come next."""
        if self.next() != character:
            raise self.error(f"Expecting {character!r} delimiter")
        self._move(self._at + 1)

    def parts(self, begin: str, end: str) -> Iterator[int]:
        """Places at which the parts of a list or object begin; who is given one steps over the part."""
        self.expect(begin)
        while self.next() != end:
            yield self.place
            if self.next() != end:
                self.expect(",")
                if self.next() == end:
                    raise self.error("Illegal trailing comma")
        self.expect(end)

    def value(self) -> Any:
        """The next value, stepped over."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if self._text[end : end + 1] in AFTER_VALUES or not self._more():  # else a number may go on
                self._move(end)
                return value

    def error(self, reason: str) -> json.JSONDecodeError:
        """What is wrong here."""
        return json.JSONDecodeError(reason, self._text, self._at)

    def _move(self, end: int) -> None:
        passed = self._text[self._at : end]
        self.place += len(passed) if passed.isascii() else len(passed.encode())
        self._at = end

    def _more(self) -> bool:
        """Read on, as much again as is there, so that a long value is not begun too often."""
        block = self._read(max(BLOCK, len(self._text) - self._at))
        self._text = self._text[self._at :] + self._utf8.decode(block, final=not block)
        self._at = 0
        return bool(block)
