"""Prompts and masked captions."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.entities.entity_tables import Entity
from alignment.entities.prompts import (
    LEGACY_MASK,
    legacy_masked_caption,
    mask_word,
    masked_caption,
    masked_id,
    masked_spans,
    prompt_id,
    prompt_of,
)

letters = st.text(alphabet="aAb é\u0301İß.'🙂\n", min_size=1, max_size=24)


@st.composite
def spans(draw: st.DrawFn) -> tuple[str, Entity]:
    caption = draw(letters)
    start = draw(st.integers(0, len(caption) - 1))
    end = draw(st.integers(start + 1, len(caption)))
    return caption, Entity(caption[start:end], start, end)


@given(spans())
@example(("a a a", Entity("a a", 0, 3)))
def test_a_mask_replaces_its_spans_and_nothing_else(case: tuple[str, Entity]) -> None:
    caption, entity = case
    places = masked_spans(caption, entity)
    assert (entity.start, entity.end) in places
    assert all(first[1] <= second[0] for first, second in zip(places, places[1:]))
    kept = [
        caption[stop:start] for stop, start in zip([0, *[end for _, end in places]], [*[s for s, _ in places], None])
    ]
    assert masked_caption(caption, entity, "\0").split("\0") == kept
    assert all(len(caption[start:end]) == len(entity.text) for start, end in places)


@given(st.lists(st.sampled_from(["a", "A", "ab", "é", "É", "a-b", "b.", "🙂"]), min_size=1), st.integers(0, 99))
def test_nothing_of_a_word_is_left(words: list[str], number: int) -> None:
    number %= len(words)
    start = len(" ".join([*words[:number], ""]))
    word = re.match(r"\w*", words[number])[0] or words[number]
    left = masked_caption(" ".join(words), Entity(word, start, start + len(word)), "\0")
    assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", left, re.IGNORECASE)


@pytest.mark.parametrize(
    ("caption", "text", "start", "expected", "legacy"),
    [
        ("A dog sees a dog.", "A dog", 0, "# sees #.", "A dog sees #."),
        ("A man and a woman", "man", 2, "A # and a woman", "A # and a wo#"),
        ("MANY men", "men", 5, "MANY #", "MANY #"),
        ("Two (2) cats", "Two (2)", 0, "# cats", "Two (2) cats"),
    ],
)
def test_masks_beside_those_of_the_original(caption: str, text: str, start: int, expected: str, legacy: str) -> None:
    assert masked_caption(caption, Entity(text, start, start + len(text)), "#") == expected
    assert legacy_masked_caption(caption, text.lower(), "#") == legacy


def test_a_wrong_span_is_a_defect() -> None:
    with pytest.raises(ValueError, match="is not in caption"):
        masked_caption("a dog", Entity("cat", 0, 3), "#")


def test_names_and_words() -> None:
    assert (prompt_id("7", 3), masked_id("7", 3)) == ("7#p0003", "7#m0003")
    assert prompt_of("a {red} dog") == "a photo containing a {red} dog"
    assert [mask_word("<mask>"), mask_word(None), mask_word("<mask>", "_")] == ["<mask>", LEGACY_MASK, "_"]
