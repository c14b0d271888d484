"""Entities of captions: laws of their offsets, and the spans that captions give."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.entities.scene_graphs import scene_tuples
from alignment.entities.spans import MAX_WORDS, Spans, chains, nested_spans
from alignment.entities.tagged import Tagger, word_spans
from alignment.entities.taggers import load_tagger

WORDS = [
    *"a the two big dog's dogs cat sits on of top is riding Bench , . and “red” it's isn't TV 🙂 naïve".split(),
    *("e\u0301", "नि", "\n", "\t"),
]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger("textblob")


TAGGER = load_tagger("textblob")
captions = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))


def texts(caption: str, max_words: int = MAX_WORDS) -> list[str]:
    return [entity.text for entity in nested_spans(caption, TAGGER(caption), max_words).entities]


@given(captions)
@example("")
@example(" \n\t ")
@example('"A dog" — \u200da cat\u0301s 👨‍👩‍👧 hat')
def test_every_entity_is_in_its_caption(caption: str) -> None:
    parsed = TAGGER(caption)
    found = nested_spans(caption, parsed)
    ends = [0]
    for token in parsed.tokens:
        assert caption[token.start : token.end] == token.text and not token.text.isspace()
        assert token.start >= ends[-1]
        ends.append(token.end)
    for entity in found.entities:
        assert caption[entity.start : entity.end] == entity.text == entity.text.strip() != ""
        assert len(entity.text.split()) <= MAX_WORDS
        assert any(character.isalpha() for character in entity.text)
    assert len({entity.text.lower() for entity in found.entities}) == len(found.entities)
    assert TAGGER(caption) == parsed
    scene_tuples(parsed)


@given(captions)
def test_words_cover_all_that_is_visible_and_keep_marks(caption: str) -> None:
    spans = word_spans(caption)
    covered = {at for start, end in spans for at in range(start, end)}
    assert covered >= {at for at, character in enumerate(caption) if not character.isspace()}
    assert all(start < end for start, end in spans)


@given(captions, st.integers(1, 9))
def test_a_longer_limit_keeps_what_a_shorter_one_found(caption: str, max_words: int) -> None:
    parsed = TAGGER(caption)
    short, long = (nested_spans(caption, parsed, words) for words in (max_words, max_words + 1))
    assert set(short.entities) <= set(long.entities)
    assert len(short.entities) + short.too_long == len(long.entities) + long.too_long


def test_the_published_caption_gives_its_published_entities() -> None:
    caption = "Four men on top of a tall structure."
    longer = ["Four men on top of a tall structure", "top of a tall structure"]
    assert texts(caption, 8) == ["Four men", "top", "a tall structure", *longer]
    assert nested_spans(caption, TAGGER(caption)) == Spans(
        nested_spans(caption, TAGGER(caption), 8).entities[:3] + nested_spans(caption, TAGGER(caption), 8).entities[4:],
        1,
    )


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black and white cow eats grass", ["A black and white cow", "grass"]),
        ("a red, white and green kite", ["a red, white and green kite"]),
        ("An old farmer's hat", ["An old farmer", "hat", "An old farmer's hat"]),
        ("A horse jumps over a fence", ["A horse", "a fence"]),
        ("Two girls race down the street", ["Two girls", "the street"]),
        ("knives and wooden spoons", ["knives", "wooden spoons"]),
        ("A boy and his sister petting a goat", ["A boy", "his sister", "a goat"]),
        ("The top of the tower leans", ["The top", "the tower", "The top of the tower"]),
        ("a sleeping cat on an old rug", ["a sleeping cat", "an old rug", "a sleeping cat on an old rug"]),
        ("A lady in a t-shirt on the curb", ["A lady", "a t-shirt", "the curb", "A lady in a t-shirt"]),
        ("a cup of tea with a bit of ice", ["a cup", "tea", "a bit", "ice", "a cup of tea", "a bit of ice"]),
        ("A dog chases A DOG", ["A dog"]),
        ("she runs while he swims", []),
        ("👍 !!", []),
    ],
)  # fmt: skip
def test_captions_give_their_phrases(caption: str, expected: list[str]) -> None:
    found = texts(caption)
    assert [text for text in found if text in expected] == expected
    assert not [text for text in found if text not in expected and len(text.split()) < 6]


def test_a_clause_ends_a_chain() -> None:
    caption = "A man in a coat waits while a bus passes"
    linked = [[link for _, link in chain] for chain in chains(TAGGER(caption))]
    assert linked == [["", "in"], [""]]
