"""Ids of phrases: built by the rule, read as published, refused where they are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_vocabulary

from alignment.mvptr.phrase_vocabulary import PhraseVocabulary, build_vocabulary, read_vocabulary
from xmatch.errors import InputError

TOKENIZER = tiny_vocabulary()
WORDS = len(TOKENIZER)
TEXTS = st.sampled_from(["cat", "dog", "zebra", "[MASK]", "##ning", "a b", "mat"])
COUNTS = st.dictionaries(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), st.integers(1, 99), max_size=12)


def test_words_share_their_rows_and_others_follow_by_how_common_they_are() -> None:
    counts = {("cat",): 50, ("zebra",): 60, ("cat", "big"): 70, ("mat",): 49, ("cat", "on", "mat"): 60}
    found = build_vocabulary(counts, TOKENIZER)
    cat = TOKENIZER.convert_tokens_to_ids("cat")
    assert found.phrases == {
        cat: ("cat",), WORDS: ("cat", "big"), WORDS + 1: ("cat", "on", "mat"), WORDS + 2: ("zebra",)}  # fmt: skip
    assert found.rows == WORDS + 3 and len(found) == 4
    assert found.ids([["zebra"], ["cat"], ["mat"], ["zebra"]]) == [WORDS + 2, cat, WORDS + 2]


@given(COUNTS, st.integers(1, 99))
def test_a_vocabulary_holds_what_is_common_and_words_alone_share_rows(counts: dict, least: int) -> None:
    found = build_vocabulary(counts, TOKENIZER, least)
    assert set(found.id_of) == {phrase for phrase, count in counts.items() if count >= least}
    behind = sorted(number for number in found.phrases if number >= WORDS)
    assert behind == list(range(WORDS, WORDS + len(behind)))
    special = set(TOKENIZER.all_special_tokens)
    for number, phrase in found.phrases.items():
        if number < WORDS:
            assert len(phrase) == 1 and phrase[0] not in special
            assert TOKENIZER.convert_ids_to_tokens(number) == phrase[0]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "id2phrase.json")
    made = build_vocabulary({("cat",): 50, ("man", "ride on top of", "ox_cart"): 60, ("café", "é"): 55}, TOKENIZER)
    made.write(path)
    assert read_vocabulary(path, words=WORDS, rows=made.rows).phrases == made.phrases
    assert list(json.loads(Path(path).read_text())) == sorted(map(str, made.phrases), key=int)
    assert b"\xc3\xa9" in Path(path).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"40": ["a"], "41": ["b"], "40": ["c"]}', "row 2: id 40 was there before"),
        ('{"40": ["a", "b"], "41": ["a", "b"]}', r"row 1: phrase \['a', 'b'\] has id 41, and another one in row 0"),
        ('{"3": ["a", "b"]}', "row 0: id 3 is below the tokenizer's 30 words"),
        ('{"30": ["a"], "99": ["b", "c"]}', "row 1: phrase 'b c' has id 99, but the model has 50 rows"),
        ('{"-1": ["a"]}', "row 0: id '-1' is no whole number"),
        ('{"x": ["a"]}', "row 0: id 'x'"),
        ('{"40": []}', "row 0: .* is no phrase"),
        ('{"40": ["a", "b", "c", "d"]}', "row 0: .* is no phrase"),
        ('{"40": "a"}', "row 0: 'a' is no phrase"),
        ('{"40": ["a", ""]}', "is no phrase"),
        ("[]", "no vocabulary of phrases"),
        ("{}", "no vocabulary of phrases"),
        ("{", "is not JSON"),
    ],
)
def test_broken_vocabularies_name_file_and_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_vocabulary(str(tmp_path / "p.json"), words=30, rows=50)
    assert "p.json" in str(refused.value)


def test_a_program_may_not_give_a_phrase_two_ids() -> None:
    with pytest.raises(ValueError, match="two ids"):
        PhraseVocabulary({1: ("a",), 2: ("a",)})
