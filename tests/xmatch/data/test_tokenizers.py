from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data.tokenizers import SPECIAL_TOKENS, train_wordpiece

LAW = settings(deadline=None, max_examples=25)
TIES = ["ab cd ef gh ij kl mn op qr st uv wx yz", "ba dc fe hg ji lk nm po rq ts vu xw zy", "äé ñó 12 34 56 78 90"]
TEXTS = st.lists(st.text(alphabet="abcdeXY .,!1é", max_size=30), max_size=8)
PROGRAM = """
import json, sys
from xmatch.data.tokenizers import train_wordpiece
print(json.dumps([train_wordpiece(json.loads(sys.argv[1]), size).get_vocab() for size in (40, 60, 90)], sort_keys=True))
"""


def test_every_process_learns_the_same_vocabulary() -> None:
    """Every pair of letters is as frequent as every other, so that each merge is a tie."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(TIES)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    first, *others = (worker.communicate(timeout=200)[0] for worker in workers)
    assert all(worker.returncode == 0 for worker in workers)
    assert len(json.loads(first)[2]) == 90
    assert others == [first, first]


@LAW
@given(texts=TEXTS, size=st.integers(5, 80))
def test_ids_are_dense_and_special_tokens_come_first(texts: list[str], size: int) -> None:
    tokenizer = train_wordpiece(texts, size)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == SPECIAL_TOKENS
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    letters = {letter for word in vocabulary if word not in SPECIAL_TOKENS for letter in word.removeprefix("##")}
    floor = len(SPECIAL_TOKENS) + 2 * len(letters)  # single letters, at the start of a word and within
    assert len(vocabulary) <= max(size, floor)
    assert vocabulary == train_wordpiece(texts, size).get_vocab()


@LAW
@given(texts=TEXTS.filter(lambda texts: any(text.strip() for text in texts)))
def test_every_word_it_learnt_from_is_known(texts: list[str]) -> None:
    tokenizer = train_wordpiece(texts, 200)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        assert tokenizer.unk_token_id not in ids
        assert not set(ids[1:-1]) & set(range(5))


def test_the_words_of_captions_are_whole_and_lower_case() -> None:
    tokenizer = train_wordpiece(["The red cat", "the red dog", "THE RED cat"] * 5, 60)
    assert tokenizer.tokenize("THE réd Cat") == ["the", "red", "cat"]
    assert tokenizer.decode(tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


@pytest.mark.parametrize("size", [30, 45])
def test_the_size_is_a_limit(size: int) -> None:
    assert len(train_wordpiece(["abc bca cab abcab", "bcabc cabca"] * 3, size)) <= size
