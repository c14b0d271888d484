"""What MVPTR learns and predicts from, whatever the task: one Arrow table of pairs of text and image.

id       string                  of the pair: caption, question, pair of sentence and image, expression
image_id string                  whose regions are read
text     string
phrases  list<int64>             ids of the text's phrases
links    list<list<int64>>       may be null: for each phrase, the words (from 0) that it was made of
tags     list<string>            may be null: object tags that the record brings along
labels   list<int64>             answers of VQA, the class of visual entailment
scores   list<float32>           how right each label is, from 0 to 1
box      list<float32>[4]        may be null: x1, y1, x2, y2 in pixels, what an expression refers to
kind     string                  what figures are told apart by, such as the kind of an answer; "" where nothing
answer   string                  may be null: of a question that is pre-trained on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from xmatch.data import files
from xmatch.data.vectors import open_arrow
from xmatch.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("phrases", pa.list_(pa.int64()), nullable=False),
        pa.field("links", pa.list_(pa.list_(pa.int64()))),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("box", pa.list_(pa.float32(), 4)),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
    ]
)


class Sample(NamedTuple):
    """One row of the table."""

    id: str
    image_id: str
    text: str
    phrases: Sequence[int] = ()
    links: Sequence[Sequence[int]] | None = None
    tags: Sequence[str] | None = None
    labels: Sequence[int] = ()
    scores: Sequence[float] = ()
    box: Sequence[float] | None = None
    kind: str = ""
    answer: str | None = None


def samples_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as a table of SCHEMA, in their order."""
    rows = list(samples)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def write_samples(path: str, table: pa.Table) -> None:
    """Write a table of SCHEMA as one Arrow file, atomically."""
    with files.open_atomic(path) as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table.combine_chunks())


def read_samples(path: str, fetch: Callable[[str], str] = str) -> pa.Table:
    """A table written by `write_samples`, memory-mapped.

    Args:
        path: of the file.
        fetch: gives a local file with the content of a URI, and a local path as it is.

    Raises:
        InputError: it is not there, or no such table.
    """
    table = open_arrow(fetch(path)).read_all()
    if table.schema.names != SCHEMA.names:
        raise InputError(f"{path!r} is no table of samples; expected the columns {', '.join(SCHEMA.names)}.")
    return table


def text_lines(path: str) -> list[str]:
    """The lines of a text file; only a line feed ends one, which JSON and TSV never hold within."""
    lines = [line.removesuffix("\r") for line in files.read_text(path).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def json_list(path: str, what: str) -> list[Any]:
    """A file that holds a JSON list.

    Raises:
        InputError: it holds something else.
    """
    content = files.read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path!r} is no list of {what}; expected a JSON list, got {type(content).__name__}.")
    return content


def field_of(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a record.

    Raises:
        InputError: the record is no object, lacks the field, or has another kind of value there.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, got {record!r:.60}.")
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(one.__name__ for one in kinds)
        raise InputError(f"{where}: expected {name!r} to be {names}, got {value!r:.60}.")
    return value


def aligned(records: Sequence[Any], others: Sequence[Any], path: str, other_path: str) -> None:
    """Check that two lists have a row for each other.

    Raises:
        InputError: they are of different lengths; names both files.
    """
    if len(records) != len(others):
        raise InputError(
            f"{other_path!r} has {len(others):,} rows, but {path!r} has {len(records):,}; expected one for each, in "
            "one order. Take both of one release."
        )
