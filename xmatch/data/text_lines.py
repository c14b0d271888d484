"""Text as numbered lines: plain files, dialogues, caption files; cut into shards by byte offset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from xmatch.data import files
from xmatch.data.steps import Shard, shard_name
from xmatch.errors import InputError

LINE_SCHEMA = pa.schema([("line_id", pa.int64()), ("text", pa.string())])
"""One row a line of the corpus, in order; line_id is its number, from 0."""
TURN_SEPARATOR = "\t"
"""Between the turns of a dialogue (Maria's form)."""


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

    `start` and `stop` are byte offsets of a text file; of captions they are line numbers. The number of a shard's
    first line is in its source, "PATH@LINE", so that a shard can be read on its own.

    Raises:
        InputError: the file is missing or empty.
    """
    if not source.path:
        raise InputError("no text file is given; name one, such as --corpus.path FILE.")
    if lines_per_shard < 1:
        raise InputError(f"lines_per_shard must be at least 1, got {lines_per_shard}.")
    shards: list[Shard] = []
    first_line = 0
    for start, stop, count in _cuts(source, lines_per_shard):
        shards.append(Shard(shard_name(len(shards)), f"{source.path}@{first_line}", start, stop))
        first_line += count
    if not shards:
        raise InputError(f"{source.path!r} is empty; expected at least one line of text.")
    return shards


def _cuts(source: LineSource, lines_per_shard: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, lines) of each shard."""
    if source.form == "captions":
        count = len(_captions(source))
        for first in range(0, count, lines_per_shard):
            yield first, min(count, first + lines_per_shard), min(count, first + lines_per_shard) - first
        return
    filesystem, inside = files.filesystem_of(source.path)
    if not files.exists(source.path):
        raise InputError(f"text file {source.path!r} does not exist; give a UTF-8 file with one text a line.")
    start = position = lines = 0
    with filesystem.open_input_stream(inside, compression=None, buffer_size=1 << 20) as stream:
        while block := stream.read(1 << 22):
            offset = 0
            while (end := block.find(b"\n", offset)) >= 0:
                offset = end + 1
                lines += 1
                if lines == lines_per_shard:
                    yield start, position + offset, lines
                    start, lines = position + offset, 0
            position += len(block)
    if position > start:
        tail = _read_range(source.path, start, position)
        yield start, position, tail.count(b"\n") + (0 if tail.endswith(b"\n") else 1)


def _read_range(path: str, start: int, stop: int) -> bytes:
    filesystem, inside = files.filesystem_of(path)
    with filesystem.open_input_file(inside) as source:
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
        first_line = int(shard.source.rsplit("@", 1)[1])
        if self.source.form == "captions":
            texts = _captions(self.source)[shard.start : shard.stop]
        else:
            texts = self._decode(_read_range(self.source.path, shard.start, shard.stop), first_line)
        if self.source.form == "dialogue_records":
            texts = [self._dialogue(text, first_line + i) for i, text in enumerate(texts)]
        numbers = pa.array(range(first_line, first_line + len(texts)), pa.int64())
        return pa.table([numbers, pa.array(texts, pa.string())], schema=LINE_SCHEMA)

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
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{where} is no dialogue record ({error}); expected context and response.") from error
        if not all(isinstance(turn, str) for turn in turns):
            raise InputError(f"{where}: every turn must be text.")
        return TURN_SEPARATOR.join(" ".join(turn.split()) for turn in turns)


def _captions(source: LineSource) -> list[str]:
    """Captions of a file in its order, line feeds within them made spaces."""
    content = files.read_json(source.path)
    texts: list[str] = []
    try:
        if isinstance(content, dict):
            for image in content["images"]:
                if source.split in (None, image["split"]):
                    texts += [sentence["raw"] for sentence in image["sentences"]]
        else:
            for entry in content:
                texts += entry["sentf"].get(source.caption_source, [])
    except (KeyError, TypeError) as error:
        raise InputError(f"{source.path!r} is no LXMERT or Karpathy caption file: {error}.") from error
    if not texts:
        raise InputError(f"{source.path!r} holds no captions (split {source.split!r}, {source.caption_source!r}).")
    return [" ".join(text.split("\n")) for text in texts]


class TextReader(LineReader):
    """Reads lines as rows of (id, text) for embedding; the id is "line-NUMBER"."""

    def __call__(self, shard: Shard) -> pa.Table:
        """All lines of a shard."""
        rows = super().__call__(shard)
        ids = [f"line-{number}" for number in rows.column("line_id").to_pylist()]
        return pa.table({"id": pa.array(ids), "text": rows.column("text")})
