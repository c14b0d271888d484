"""JSON lines: bad rows are told by file and line, and ids never mix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.original_files.json_lines import Line, id_texts, read_lines, unique_ids, write_lines, written_id
from xmatch.errors import InputError


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False)))))
def test_what_is_written_is_read(tmp_path_factory, entries) -> None:
    path = str(tmp_path_factory.mktemp("lines") / "x.jsonl")
    assert write_lines(path, entries) == len(entries)
    assert [line.entry for line in read_lines(path)] == entries
    assert [line.number for line in read_lines(path)] == list(range(1, len(entries) + 1))


def test_blank_lines_count_and_a_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": 1}\n\n  \r\n{"a": 2}')
    assert [(line.number, line.entry["a"]) for line in read_lines(str(tmp_path / "x"))] == [(1, 1), (4, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ('{"a": 1}\n[1]\n', "line 2: expected an object, got list"),
        ("\xff", "line 1 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        list(read_lines(str(tmp_path / "x")))
    with pytest.raises(InputError, match="does not exist"):
        list(read_lines(str(tmp_path / "gone")))


def test_fields_have_their_types() -> None:
    line = Line(7, {"id": True, "text": 5, "list": ["a", 1]})
    for name, kind, message in (
        ("gone", str, "line 7: no field 'gone'; it has 'id', 'text', 'list'"),
        ("text", str, "'text' must be str, got int 5"),
        ("id", (int, str), "'id' must be int or str, got bool True"),
    ):
        with pytest.raises(InputError, match=message):
            line.value(name, kind, "f")
    with pytest.raises(InputError, match="'list' must hold texts, got int 1"):
        line.texts("list", "f")


def test_ids_of_mixed_types_are_counted_and_named() -> None:
    assert id_texts([(1, 5), (2, -7)], "query_id", "f") == ["5", "-7"]
    assert id_texts([(1, "05"), (2, "x")], "query_id", "f") == ["05", "x"]
    with pytest.raises(InputError, match=r"mixed types in query_id: 2 whole numbers and 1 texts \(line 9 has '5'\)"):
        id_texts([(1, 5), (9, "5"), (10, 6)], "query_id", "f")
    with pytest.raises(InputError, match=r"2 of 3 values of query_id are no ids: line 2 has None, line 3 has 1.5"):
        id_texts([(1, 5), (2, None), (3, 1.5)], "query_id", "f")
    with pytest.raises(InputError, match="line 4: query_id '5' was in line 1"):
        unique_ids([(1, 5), (4, 5)], "query_id", "f")


@settings(deadline=None, max_examples=60)
@given(st.integers())
def test_whole_numbers_survive_as_numbers(number: int) -> None:
    assert written_id(str(number), as_number=True) == number
    assert written_id(str(number), as_number=False) == str(number)
    assert written_id(f"0{abs(number)}", as_number=True) == f"0{abs(number)}"
