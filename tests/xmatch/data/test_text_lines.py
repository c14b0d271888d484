from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import karpathy_json

from xmatch.data import text_lines
from xmatch.data.text_lines import LineReader, LineSource, TextReader, plan_line_shards
from xmatch.errors import InputError


def read_all(source: LineSource, per_shard: int) -> list[tuple[int, str]]:
    reader = LineReader(source)
    rows = [row for shard in plan_line_shards(source, per_shard) for row in reader(shard).to_pylist()]
    return [(row["line_id"], row["text"]) for row in rows]


@settings(deadline=None)
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


@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=9), min_size=1),
    per_shard=st.integers(1, 9),
    most=st.integers(1, 40),
)
def test_shards_end_at_a_size_too_and_still_partition_the_lines(tmp_path_factory, lines, per_shard, most) -> None:
    path = tmp_path_factory.mktemp("t") / "x"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "MAX_SHARD_BYTES", most)
        shards = plan_line_shards(LineSource(path=str(path)), per_shard)
        assert read_all(LineSource(path=str(path)), per_shard) == list(enumerate(lines))
    longest = max(len(line.encode()) + 1 for line in lines)
    assert all(shard.stop - shard.start < most + longest for shard in shards)


@pytest.mark.parametrize("end", [b"", b"\n", b"\nshort\n"])
def test_an_absurdly_long_line_is_named_before_any_is_read(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\n" + bytes(text_lines.MAX_LINE_BYTES + 2) + end)
    with pytest.raises(InputError, match="line 3 has more than 16,777,216 bytes"):
        plan_line_shards(LineSource(path=str(tmp_path / "x")), 5)
    (tmp_path / "y").write_bytes(b"a\n" + bytes(text_lines.MAX_LINE_BYTES - 1) + b"\nb")
    assert len(plan_line_shards(LineSource(path=str(tmp_path / "y")), 5)) == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[" * 100_000, "is no dialogue record"),
        ('{"context": ["\\ud800"], "response": "x"}', "line 1 holds half a character"),
        ('{"context": [' + "9" * 5000 + '], "response": "x"}', "is no dialogue record"),
    ],
)
def test_hostile_records_are_named(tmp_path: Path, record: str, message: str) -> None:
    (tmp_path / "x").write_text(record)
    with pytest.raises(InputError, match=message):
        read_all(LineSource(path=str(tmp_path / "x"), form="dialogue_records"), 5)


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"sentf": {"mscoco": ["a cat", null]}}]')
    with pytest.raises(InputError, match="a caption that is no text: None"):
        read_all(LineSource(path=str(tmp_path / "c.json"), form="captions"), 5)
