from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_vocabulary

from vokenize.tokens import TokenizeLines, load_tokenizer, plan_token_shards, read_token_shard, tokenize
from xmatch.data import files
from xmatch.errors import InputError


def test_every_line_is_kept_with_offsets_and_turns(tokenizer) -> None:
    texts = ["The cat.", "", "hello\tworld\t!", "   "]
    table = tokenize(tokenizer, [5, 6, 7, 8], texts)
    assert table.column("line_id").to_pylist() == [5, 6, 7, 8]
    assert table.column("token_ids").to_pylist() == [[6, 7, 18], None, [16, 17, 20], None]
    assert table.column("turns").to_pylist()[2] == [0, 1, 2]
    for row in table.to_pylist():
        spans = [row["text"][s:e].lower() for s, e in zip(row["starts"] or [], row["ends"] or [], strict=True)]
        assert spans == [w.removeprefix("##") for w in tokenizer.convert_ids_to_tokens(row["token_ids"] or [])]


def test_the_step_counts_and_loads_by_folder(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    rows = pa.table({"line_id": [0, 1], "text": ["the cat", ""]})
    assert TokenizeLines(str(tmp_path))("part-00000", rows).counts == {"lines": 2, "tokens": 2, "empty_lines": 1}


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="no/such"):
        load_tokenizer("no/such")


def test_shards_are_planned_from_footers_and_checked(tmp_path: Path, tokenizer) -> None:
    for number in range(2):
        table = tokenize(tokenizer, [2 * number, 2 * number + 1], ["the cat", "a dog"])
        files.write_parquet(str(tmp_path / "shards" / f"part-0000{number}.parquet"), table)
    shards = plan_token_shards(str(tmp_path))
    assert [(s.id, s.start, s.stop) for s in shards] == [("part-00000", 0, 2), ("part-00001", 2, 4)]
    assert len(read_token_shard(shards[1])) == 2
    files.write_parquet(shards[0].source, pa.concat_tables([read_token_shard(shards[1])] * 2))
    with pytest.raises(InputError, match="line_id must count up"):
        read_token_shard(shards[0])
    Path(shards[1].source).write_bytes(b"PAR1xx")
    with pytest.raises(InputError, match="part-00001"):
        plan_token_shards(str(tmp_path))
    with pytest.raises(InputError, match="tokenize_corpus"):
        plan_token_shards(str(tmp_path / "nowhere"))


def test_whole_lines_are_tokenized_whatever_the_tokenizer_was_saved_with(tokenizer) -> None:
    lines = ["the cat", "a dog ran"]
    expected = tokenize(tokenizer, [0, 1], lines)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=6)
    assert tokenize(tokenizer, [0, 1], lines).equals(expected)


@given(st.lists(st.text("the cat\tdogran!é猫 ", max_size=20), max_size=6))
def test_it_is_what_the_tokenizer_says_line_by_line(lines: list[str]) -> None:
    tokenizer = tiny_vocabulary()
    for text, row in zip(lines, tokenize(tokenizer, list(range(len(lines))), lines).to_pylist(), strict=True):
        alone = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in alone["offset_mapping"]]
        assert row["token_ids"] == (alone["input_ids"] or None)
        assert list(zip(row["starts"] or [], row["ends"] or [], strict=True)) == alone["offset_mapping"]
        assert (row["turns"] or []) == [text[:start].count("\t") for start in starts]
