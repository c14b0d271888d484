"""Text as numbered lines: plain files, dialogues, caption files; cut into shards by byte offset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from xmatch.data import files
from xmatch.data.caption_lines import CaptionForm, Cut, cut_captions, read_cut
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

LINE_SCHEMA = pa.schema([("line_id", pa.int64()), ("text", pa.string())])
"""One row a line of the corpus, in order; line_id is its number, from 0."""
TURN_SEPARATOR = "\t"
"""Between the turns of a dialogue (Maria's form)."""
MAX_LINE_BYTES = 1 << 24
"""Longest line taken for text: a file of one huge line is of another kind, and would fill a worker's memory."""
MAX_SHARD_BYTES = 1 << 30
"""A shard ends after the line with which it has so many bytes: it is read whole, and Arrow's texts end at 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class LineSource:
    """A text corpus and its form."""

    path: str = ""
    """The file."""
    form: Literal["lines", "dialogue_records", "captions"] = "lines"
    """`lines`: one text a line; a dialogue's turns are joined by tabs. `dialogue_records`: JSON lines with `context`
    (a list of turns) and `response`. `captions`: LXMERT or Karpathy JSON, one caption a line."""
    part: Literal["all", "context"] = "all"
    """Of dialogue records: context and response (training), or the context alone (validation and test)."""
    caption_source: str = "mscoco"
    """Language source of LXMERT captions."""
    split: str | None = None
    """Split of Karpathy captions; null takes every split."""


def plan_line_shards(source: LineSource, lines_per_shard: int) -> list[Shard]:
    """Shards of consecutive lines.

    `start` and `stop` are byte offsets. The number of a shard's first line is in its source, "PATH@LINE", so that a
    shard can be read on its own; of captions "PATH@LINE,SKIP,COUNT" says which of those between the offsets it has.

    Raises:
        InputError: the file is missing or empty.
    """
    if not source.path:
        raise InputError("no text file is given; name one, such as --corpus.path FILE.")
    if lines_per_shard < 1:
        raise InputError(f"lines_per_shard must be at least 1, got {lines_per_shard}.")
    shards: list[Shard] = []
    first_line = 0
    if source.form == "captions":
        for cut in cut_captions(_form(source), lines_per_shard):
            place = f"{source.path}@{first_line},{cut.skip},{cut.captions}"
            shards.append(Shard(shard_name(len(shards)), place, cut.start, cut.stop))
            first_line += cut.captions
        return shards
    for start, stop, count in _cuts(source, lines_per_shard):
        shards.append(Shard(shard_name(len(shards)), f"{source.path}@{first_line}", start, stop))
        first_line += count
    if not shards:
        raise InputError(f"{source.path!r} is empty; expected at least one line of text.")
    return shards


def _cuts(source: LineSource, lines_per_shard: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, lines) of each shard."""
    filesystem, inside = files.filesystem_of(source.path)
    if not files.exists(source.path):
        raise InputError(f"text file {source.path!r} does not exist; give a UTF-8 file with one text a line.")
    with (
        files.reading(source.path),
        filesystem.open_input_stream(inside, compression=None, buffer_size=1 << 20) as text,
    ):
        yield from _cut_lines(iter(lambda: text.read(1 << 22), b""), source.path, lines_per_shard)


def _cut_lines(blocks: Iterator[bytes], path: str, lines_per_shard: int) -> Iterator[tuple[int, int, int]]:
    start = begin = position = lines = before = 0  # of the shard, of the line, of the block; lines of it, and before it
    for block in blocks:
        offset = 0
        while (end := block.find(b"\n", offset)) >= 0:
            offset = end + 1
            lines += 1
            _require_line(position + offset - begin, path, before + lines)
            begin = position + offset
            if lines == lines_per_shard or begin - start >= MAX_SHARD_BYTES:
                yield start, begin, lines
                start, before, lines = begin, before + lines, 0
        position += len(block)
        _require_line(position - begin, path, before + lines + 1)
    if position > start:
        yield start, position, lines + (position > begin)


def _require_line(size: int, path: str, number: int) -> None:
    if size > MAX_LINE_BYTES:
        raise InputError(
            f"{path!r}, line {number} has more than {MAX_LINE_BYTES:,} bytes; expected text with one sentence or "
            "paragraph a line. Break its lines, or give another file."
        )


def _read_range(path: str, start: int, stop: int) -> bytes:
    filesystem, inside = files.filesystem_of(path)
    with files.reading(path), filesystem.open_input_file(inside) as source:
        source.seek(start)
        return bytes(source.read(stop - start))


class LineReader:
    """Reads a shard of a corpus as rows of LINE_SCHEMA."""

    def __init__(self, source: LineSource) -> None:
        self.source = source

    def __call__(self, shard: Shard) -> pa.Table:
        """All lines of a shard; only a line feed ends a line.

        Raises:
            InputError: a line is not UTF-8 or no dialogue record; names file and line.
        """
        first_line, *within = map(int, shard.source.rsplit("@", 1)[1].split(","))
        if self.source.form == "captions":
            texts = read_cut(_form(self.source), Cut(shard.start, shard.stop, *within))
        else:
            texts = self._decode(_read_range(self.source.path, shard.start, shard.stop), first_line)
        if self.source.form == "dialogue_records":
            texts = [self._dialogue(text, first_line + i) for i, text in enumerate(texts)]
        numbers = pa.array(range(first_line, first_line + len(texts)), pa.int64())
        return pa.table([numbers, self._column(texts, first_line)], schema=LINE_SCHEMA)

    def _column(self, texts: list[str], first_line: int) -> pa.Array:
        try:
            return pa.array(texts, pa.string())
        except UnicodeEncodeError as error:  # JSON can spell half a character
            at = next(at for at, text in enumerate(texts) if text.encode(errors="replace").decode() != text)
            raise InputError(
                f"{self.source.path!r}, line {first_line + at + 1} holds half a character ({error.reason}); mend it."
            ) from error

    def _decode(self, data: bytes, first_line: int) -> list[str]:
        lines = data.split(b"\n")
        if lines and not lines[-1]:
            lines.pop()
        texts = []
        for number, line in enumerate(lines):
            try:
                texts.append(line.removesuffix(b"\r").decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.source.path!r}, line {first_line + number + 1} is not UTF-8 ({error.reason} at byte "
                    f"{error.start} of the line). Convert the file to UTF-8."
                ) from error
        return texts

    def _dialogue(self, line: str, number: int) -> str:
        where = f"{self.source.path!r}, line {number + 1}"
        try:
            record: Any = json.loads(line)
            turns = list(record["context"]) + ([record["response"]] if self.source.part == "all" else [])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{where} is no dialogue record ({error}); expected context and response.") from error
        if not all(isinstance(turn, str) for turn in turns):
            raise InputError(f"{where}: every turn must be text.")
        return TURN_SEPARATOR.join(" ".join(turn.split()) for turn in turns)


def _form(source: LineSource) -> CaptionForm:
    return CaptionForm(source.path, source.split, source.caption_source)


class TextReader(LineReader):
    """Reads lines as rows of (id, text) for embedding; the id is "line-NUMBER"."""

    def __call__(self, shard: Shard) -> pa.Table:
        """All lines of a shard."""
        rows = super().__call__(shard)
        ids = [f"line-{number}" for number in rows.column("line_id").to_pylist()]
        return pa.table({"id": pa.array(ids), "text": rows.column("text")})
