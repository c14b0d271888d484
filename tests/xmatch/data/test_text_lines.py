from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import karpathy_json

from xmatch.data.text_lines import LineReader, LineSource, TextReader, plan_line_shards
from xmatch.errors import InputError


def read_all(source: LineSource, per_shard: int) -> list[tuple[int, str]]:
    reader = LineReader(source)
    rows = [row for shard in plan_line_shards(source, per_shard) for row in reader(shard).to_pylist()]
    return [(row["line_id"], row["text"]) for row in rows]


@given(
    lines=st.lists(st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",))), min_size=1),
    per_shard=st.integers(1, 7),
    final_newline=st.booleans(),
)
def test_shards_partition_the_lines_in_order(tmp_path_factory, lines, per_shard, final_newline) -> None:
    if not final_newline and not lines[-1]:
        lines = [*lines[:-1], "x"]
    path = tmp_path_factory.mktemp("t") / "x.txt"
    path.write_bytes(("\n".join(lines) + ("\n" if final_newline else "")).encode())
    assert read_all(LineSource(path=str(path)), per_shard) == list(enumerate(lines))


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("a\u2028b\x0bc\x85d\r\ne\n".encode())
    assert read_all(LineSource(path=str(path)), 10) == [(0, "a\u2028b\x0bc\x85d"), (1, "e")]


def test_dialogue_records_join_turns_by_tabs(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"context": ["hi\tthere", "yes"], "response": "bye"}) + "\n")
    both = LineSource(path=str(path), form="dialogue_records")
    assert read_all(both, 5) == [(0, "hi there\tyes\tbye")]
    assert read_all(LineSource(path=str(path), form="dialogue_records", part="context"), 5) == [(0, "hi there\tyes")]
    path.write_text('{"context": []}\n')
    with pytest.raises(InputError, match="line 1.*response"):
        read_all(both, 5)


def test_captions_are_a_corpus(tmp_path: Path) -> None:
    path = karpathy_json(tmp_path / "c.json", {"train": ["a.jpg"], "test": ["b.jpg", "c.jpg"]})
    assert len(read_all(LineSource(path=path, form="captions"), 4)) == 6
    assert len(read_all(LineSource(path=path, form="captions", split="test"), 3)) == 4


def test_texts_for_embedding_carry_ids(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a\nb\n")
    source = LineSource(path=str(tmp_path / "x"))
    [shard] = plan_line_shards(source, 9)
    assert TextReader(source)(shard).to_pylist() == [{"id": "line-0", "text": "a"}, {"id": "line-1", "text": "b"}]


def test_bad_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan_line_shards(LineSource(path=str(tmp_path / "no")), 5)
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="is empty"):
        plan_line_shards(LineSource(path=str(tmp_path / "empty")), 5)
    (tmp_path / "latin").write_bytes(b"ok\nok\nna\xefve\n")
    with pytest.raises(InputError, match="line 3 is not UTF-8"):
        read_all(LineSource(path=str(tmp_path / "latin")), 1)
    with pytest.raises(InputError, match="name one"):
        plan_line_shards(LineSource(), 5)
