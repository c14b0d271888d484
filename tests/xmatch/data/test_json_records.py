from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import json_records
from xmatch.data.json_records import is_json_list, read_records
from xmatch.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    items=st.lists(VALUES, max_size=8),
    others=st.dictionaries(st.text(max_size=3).filter(lambda key: key != "images"), VALUES, max_size=3),
    is_list=st.booleans(),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
)
def test_records_are_the_items_where_they_say(
    tmp_path_factory, items, others, is_list, indent, ascii_only, block
) -> None:
    path = tmp_path_factory.mktemp("j") / "x.json"
    content = items if is_list else {**dict(list(others.items())[:1]), "images": items, **others}
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "BLOCK", block)
        found = list(read_records(str(path), "images"))
    assert [record.value for record in found] == items
    assert [json.loads(text[record.start : record.stop]) for record in found] == items
    assert is_json_list(str(path)) == is_list


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"a": 1},',
        '{"images": [1 2]}',
        '{"images": [1,]}',
        '{"images" [1]}',
        "[1] x",
        "{1: [2]}",
        '["\\ud"]',
        "",
    ],
)
def test_what_is_no_json_is_named_by_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="x.json.* (not JSON near byte|neither a JSON list)"):
        list(read_records(str(tmp_path / "x.json"), "images"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, said in (('{"a": 1}', "no list 'images'"), ('{"images": 3}', "no list 'images'"), ("7", "neither")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            list(read_records(str(path), "images"))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match="near byte"):
        list(read_records(str(path), "images"))
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="near byte"):
        list(read_records(str(path), "images"))
    with pytest.raises(InputError, match="does not exist"):
        list(read_records(str(tmp_path / "no"), "images"))


def test_only_a_few_records_are_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"raw": f"{number} " + "x" * 990} for number in range(20_000)]}))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(str(path), "images")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()
