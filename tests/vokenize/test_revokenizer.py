from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import golden
from small_tokenizers import KINDS, TEXTS
from small_vokens import random_vokens, write_tokens, write_vokens

from vokenize.alignment import Spans, align
from vokenize.original_alignment import align_greedily
from vokenize.revokenizer import MoveVokens, ReadMoves, ReadVokened, Retokenize, Revokenize
from vokenize.tokens import plan_token_shards, read_token_shard, tokenize
from vokenize.voken_files import check_vokens
from xmatch.data import files
from xmatch.errors import InputError

INFO = {"schema": 1, "top_k": 2, "level": "both", "keys": 9}
BUILT = {name: build() for name, build in KINDS.items()}
LINES = [*TEXTS, "", "   ", "a"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, str]:
    """Folders of saved tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in BUILT.items():
        tokenizer.save_pretrained(str(folder / name))
    return {name: str(folder / name) for name in KINDS}


def vokened(tokenizer, lines: list[str], **changes) -> pa.Table:
    """Old tokens with their vokens."""
    tokens = tokenize(tokenizer, list(range(len(lines))), lines)
    vokens = random_vokens(tokens, **changes)
    return pa.table([*tokens.columns, *vokens.columns[1:]], names=[*tokens.column_names, *vokens.column_names[1:]])


def moved(old: pa.Table, tokenizer: str, info: dict = INFO, rule: str = "overlap") -> tuple[pa.Table, pa.Table]:
    """New tokens and new vokens."""
    first = Retokenize(tokenizer)
    tokens = first("s", old).table
    vokens = Revokenize(first, MoveVokens(info, rule, tokenizer))("s", old).table
    check_vokens(tokens, vokens, "moved")
    return tokens, vokens


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_any_tokenizer_gives_vokens_to_any_other(kinds: dict[str, str], old: str, new: str) -> None:
    before = vokened(BUILT[old], LINES)
    tokens, vokens = moved(before, kinds[new])
    assert tokens.column("line_id").equals(before.column("line_id"))
    assert tokens.column("text").equals(before.column("text"))
    for name in ("sentence_vokens", "sentence_scores"):
        assert vokens.column(name).to_pylist() == before.column(name).to_pylist()
    whole = tokenize(BUILT[new], list(range(len(LINES))), LINES)
    for line, one, then, now, fresh in zip(
        LINES, before.to_pylist(), tokens.to_pylist(), vokens.to_pylist(), whole.to_pylist(), strict=True
    ):
        if not one["token_ids"]:
            assert (then["token_ids"], then["turns"], now["vokens"], now["piece_lengths"]) == (None,) * 4
            continue
        assert then == fresh
        assert sum(now["piece_lengths"]) == len(then["token_ids"] or [])
        if not then["token_ids"]:
            assert (now["vokens"], now["scores"]) == (None, None)
            continue
        pairs = list(zip(one["vokens"][::2], one["vokens"][1::2], one["scores"][::2], one["scores"][1::2]))
        chosen = zip(now["vokens"][::2], now["vokens"][1::2], now["scores"][::2], now["scores"][1::2])
        for start, end, voken in zip(then["starts"], then["ends"], chosen, strict=True):
            shares = [min(end, e) - max(start, s) for s, e in zip(one["starts"], one["ends"], strict=True)]
            best = [pair for pair, share in zip(pairs, shares, strict=True) if share == max(shares)]
            assert voken in best, (line, start, end)


@pytest.mark.parametrize("level", ["token", "sentence", "both"])
@pytest.mark.parametrize("name", KINDS)
def test_the_same_tokenizer_gives_the_same_bytes(kinds: dict[str, str], tmp_path: Path, name: str, level: str) -> None:
    tokens = tokenize(BUILT[name], list(range(len(LINES))), LINES)
    vokens = random_vokens(tokens, level)
    old = pa.table([*tokens.columns, *vokens.columns[1:]], names=[*tokens.column_names, *vokens.column_names[1:]])
    made = moved(old, kinds[name], INFO | {"level": level})
    for number, table in enumerate([tokens, vokens, *made]):
        files.write_parquet(str(tmp_path / f"{number}.parquet"), table)
    content = [(tmp_path / f"{number}.parquet").read_bytes() for number in range(4)]
    assert content[:2] == content[2:]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=24)),
        min_size=1,
        max_size=5,
    ),
    old=st.sampled_from(sorted(KINDS)),
    new=st.sampled_from(sorted(KINDS)),
)
def test_whatever_the_text_lines_and_counts_fit(kinds: dict[str, str], lines: list[str], old: str, new: str) -> None:
    before = vokened(BUILT[old], lines)
    tokens, vokens = moved(before, kinds[new])
    assert tokens.column("text").to_pylist() == lines
    assert vokens.column("line_id").to_pylist() == list(range(len(lines)))
    if old == new:
        assert vokens.column("vokens").equals(before.column("vokens"))
        assert vokens.column("piece_lengths").equals(before.column("piece_lengths"))


def test_what_shares_no_character_is_counted(kinds: dict[str, str]) -> None:
    lines = ["ab  cd", "   ", ""]
    old = vokened(BUILT["wordpiece"], lines)
    first = Retokenize(kinds["letters"])
    made = first("s", old)
    assert made.counts == {"lines": 3, "tokens": 6, "empty_lines": 2, "tokens_without_vokens": 3}
    counts = Revokenize(first, MoveVokens(INFO))("s", old).counts
    assert (counts["tokens"], counts["vokens"], counts["tokens_beside_all_old"]) == (6, 6, 2)
    assert counts["old_tokens"] == sum(len(ids) for ids in old.column("token_ids").to_pylist() if ids)


def test_old_tokens_that_nobody_takes_are_counted(kinds: dict[str, str]) -> None:
    old = vokened(BUILT["letters"], ["the cat"])
    counts = Revokenize(Retokenize(kinds["wordpiece"]), MoveVokens(INFO))("s", old).counts
    assert counts["old_tokens"] == 7
    assert counts["old_tokens_unused"] == 7 - counts["tokens"]


def test_lower_casing_that_changes_lengths_keeps_to_the_characters_of_the_line(kinds: dict[str, str]) -> None:
    text = "İİİİ cat"  # lower case has twice the letters
    old = vokened(BUILT["letters"], [text])
    tokens, vokens = moved(old, kinds["unigram"])
    row, now, one = tokens.to_pylist()[0], vokens.to_pylist()[0], old.to_pylist()[0]
    last = row["token_ids"].index(row["token_ids"][-1])
    assert row["ends"][-1] == len(text)
    start = max(row["starts"][-1], 0)
    assert now["vokens"][2 * last : 2 * last + 2] == one["vokens"][2 * start : 2 * start + 2]


def as_rows(forward: list[list[int]], ids: list[int], text: str) -> pa.Table:
    """Old tokens with voken 1000 + i at token i, and new tokens by their ids."""
    count = len(forward)
    columns = {
        "line_id": [0],
        "text": [text],
        "token_ids": [list(range(count))],
        "starts": [[start for start, _ in forward]],
        "ends": [[end for _, end in forward]],
        "piece_lengths": [[count]],
        "vokens": [list(range(1000, 1000 + count))],
        "scores": [[0.5] * count],
        "sentence_vokens": [None],
        "sentence_scores": [None],
        "new_token_ids": [ids],
    }
    kinds = {"vokens": pa.list_(pa.int32()), "scores": pa.list_(pa.float32()), "piece_lengths": pa.list_(pa.int32())}
    return pa.table({n: pa.array(c, kinds.get(n)) for n, c in columns.items()})


class Spelling:
    """A tokenizer that knows one sentence: ids are places in it."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[i] for i in ids]

    def __call__(self, text: str, **settings) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(self.tokens)))}


@pytest.mark.parametrize("case", golden("revokenization")["cases"], ids=lambda case: case["decoded_sentence"].strip())
@pytest.mark.parametrize("lead", [0, 1])
def test_the_original_rule_gives_the_original_vokens(monkeypatch, case: dict, lead: int) -> None:
    """With the decoded sentence as the line, and with a line that lacks the space the tokenizer puts before it."""
    monkeypatch.setattr("vokenize.revokenizer.load_tokenizer", lambda name: Spelling(case["backward_tokens"]))
    forward = [[start - lead, end - lead] for start, end in case["forward_offsets"]]
    rows = as_rows(forward, list(range(case["backward_ids_len"])), case["decoded_sentence"][lead:])
    made = MoveVokens({"schema": 1, "top_k": 1, "level": "token", "keys": 2000}, "original", "golden")("s", rows)
    expected = case["mapped_result_from_forward_[100,1000..,200]"][1:-1]
    assert made.table.column("vokens")[0].as_py() == expected


@pytest.mark.parametrize("prefix", [False, True])
def test_the_original_rule_takes_real_byte_level_tokens(kinds: dict[str, str], prefix: bool) -> None:
    name = "byte_level_prefixed" if prefix else "byte_level"
    old = vokened(BUILT["wordpiece"], LINES)
    tokens, vokens = moved(old, kinds[name], rule="original")
    for one, then, now in zip(old.to_pylist(), tokens.to_pylist(), vokens.to_pylist(), strict=True):
        assert len(now["vokens"] or []) == 2 * len(then["token_ids"] or [])
        if one["token_ids"] and one["text"].isascii() and not prefix:
            spans = list(zip(then["starts"], then["ends"], strict=True))
            rows = align_greedily(list(zip(one["starts"], one["ends"], strict=True)), spans)
            assert now["vokens"][::2] == [one["vokens"][2 * row] for row in rows]


def test_a_long_token_wins_by_shared_characters_and_loses_by_intersection_over_union() -> None:
    old, new = [(0, 2), (2, 20)], [(0, 6)]
    spans = [Spans(*(np.array(c, np.int64) for c in zip(*pairs, strict=True))) for pairs in (old, new)]
    assert align(*spans).rows.tolist() == [1]
    assert align_greedily(old, new) == [0]


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_the_original_rule_refuses_other_tokenizers(kinds: dict[str, str], name: str) -> None:
    with pytest.raises(InputError, match="--alignment overlap"):
        moved(vokened(BUILT["letters"], ["A cat"]), kinds[name], rule="original")


def test_pieces_that_do_not_cover_their_line_are_named() -> None:
    rows = as_rows([[0, 1], [1, 2]], [0], "ab").set_column(5, "piece_lengths", pa.array([[1]], pa.list_(pa.int32())))
    rows = rows.append_column("new_starts", pa.array([[0]])).append_column("new_ends", pa.array([[2]]))
    with pytest.raises(InputError, match="line 0: its pieces have 1 tokens in all, the line has 2"):
        MoveVokens({"schema": 1, "top_k": 1, "level": "token", "keys": 2000})("s", rows)


def test_shards_are_read_with_their_vokens_and_new_tokens(kinds: dict[str, str], tmp_path: Path) -> None:
    shards = write_tokens(tmp_path / "t", BUILT["wordpiece"], LINES)
    write_tokens(tmp_path / "n", BUILT["byte_level"], LINES)
    write_vokens(tmp_path / "v", tmp_path / "t", shards)
    planned = plan_token_shards(str(tmp_path / "t"))
    rows = ReadMoves(str(tmp_path / "v"), str(tmp_path / "n"), INFO)(planned[1])
    assert rows.column("new_token_ids").equals(
        read_token_shard(plan_token_shards(str(tmp_path / "n"))[1]).column("token_ids")
    )
    with pytest.raises(InputError, match="shards of two runs"):
        ReadVokened(str(tmp_path / "v"), INFO | {"top_k": 3})(planned[1])
