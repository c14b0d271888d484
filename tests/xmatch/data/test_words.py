from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.data.words import (
    SPECIAL_WORDS,
    WordVocabulary,
    build_vocabulary,
    read_vocabulary,
    split_words,
    wrap_words,
    write_vocabulary,
)
from xmatch.errors import InputError

CAPTIONS = ["A dog runs."] * 4 + ["a cat runs"] * 3 + ["A man's hat"]


@given(st.text(max_size=60))
def test_words_are_lower_case_and_keep_every_letter(text: str) -> None:
    words = split_words(text)
    assert all(words)
    kept = "".join(words).replace("``", "").replace("''", "").replace('"', "")
    assert sorted(c for c in kept if c.isalnum()) == sorted(c for c in text.lower() if c.isalnum())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog can't run.", ["a", "man", "'s", "dog", "ca", "n't", "run", "."]),
        ("Two (red) cars, 5,000 people!", ["two", "(", "red", ")", "cars", ",", "5,000", "people", "!"]),
        ("A dog. It runs.", ["a", "dog.", "it", "runs", "."]),  # sentences are not cut
        ('a sign "stop"', ["a", "sign", "``", "stop", "''"]),
        ("", []),
    ],
)
def test_words_of_captions(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_a_vocabulary_keeps_frequent_words_in_order_of_occurrence() -> None:
    assert build_vocabulary(CAPTIONS).words == (*SPECIAL_WORDS, "a", "dog", "runs", ".")
    assert build_vocabulary(CAPTIONS, 1).words[-3:] == ("man", "'s", "hat")
    with pytest.raises(InputError, match="at least 1"):
        build_vocabulary(CAPTIONS, 0)


def test_a_written_vocabulary_is_scans_and_is_read_again(tmp_path: Path) -> None:
    path = str(tmp_path / "v.json")
    vocabulary = build_vocabulary(CAPTIONS)
    write_vocabulary(path, vocabulary)
    assert read_vocabulary(path) == vocabulary
    content = json.loads(Path(path).read_text())
    assert content["idx"] == 8 and content["word2idx"]["dog"] == 5 and content["idx2word"]["5"] == "dog"


def content(**changes: Any) -> dict[str, Any]:
    words = [*SPECIAL_WORDS, "a", "b"]
    maps = {"word2idx": {w: i for i, w in enumerate(words)}, "idx2word": {str(i): w for i, w in enumerate(words)}}
    return maps | {"idx": 6} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idx": 7}, "all three must agree"),
        ({"idx": "x"}, "idx count them"),
        ({"word2idx": []}, "expected an object with word2idx"),
        ({"idx2word": []}, "must map ids to words"),
        ({"idx2word": {str(i): w for i, w in enumerate([*SPECIAL_WORDS, "b", "a"])}}, "id 4"),
        ({"idx2word": {str(i + 1): w for i, w in enumerate([*SPECIAL_WORDS, "a", "b"])}}, "id 0"),
        ({"idx2word": {str(i): 3 for i in range(6)}}, "id 0"),
    ],
)
def test_vocabularies_that_are_none_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(content(**changes)))
    with pytest.raises(InputError, match=message) as error:
        read_vocabulary(str(path))
    assert "v.json" in str(error.value)


def test_the_special_words_must_lead(tmp_path: Path) -> None:
    path = str(tmp_path / "v.json")
    write_vocabulary(path, WordVocabulary(("a", *SPECIAL_WORDS)))
    with pytest.raises(InputError, match="first words must be <pad>"):
        read_vocabulary(path)


@pytest.mark.parametrize("mask", [True, False])
def test_the_tokenizer_frames_pads_and_knows_unknown_words(tmp_path: Path, mask: bool) -> None:
    vocabulary = build_vocabulary(CAPTIONS)
    tokenizer = wrap_words(vocabulary, mask)
    tokenizer.save_pretrained(str(tmp_path))
    batch = [split_words("A dog runs."), split_words("a zebra"), []]
    found = tokenizer(batch, is_split_into_words=True, padding=True)
    assert found["input_ids"] == [[1, 4, 5, 6, 7, 2], [1, 4, 3, 2, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert [sum(row) for row in found["attention_mask"]] == [6, 4, 2]
    assert len(tokenizer) == len(vocabulary.words) + mask
    assert tokenizer.mask_token_id == (len(vocabulary.words) if mask else None)
    again = type(tokenizer).from_pretrained(str(tmp_path))
    assert again(batch, is_split_into_words=True, padding=True)["input_ids"] == found["input_ids"]
