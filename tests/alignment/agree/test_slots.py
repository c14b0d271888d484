"""Which entities of a caption take part, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.agree.slots import EntityConfig, choose_entities
from alignment.entities.entity_tables import CaptionEntities, Entity, entity_table
from xmatch.errors import InputError

LAW = settings(deadline=None, max_examples=40)
WORDS = st.lists(st.sampled_from(["a", "dog", "Runs", "über", "hat,"]), min_size=1, max_size=9).map(" ".join)


@st.composite
def captions(draw) -> list[CaptionEntities]:
    """Captions with spans of whole characters."""
    rows = []
    for number, text in enumerate(draw(st.lists(WORDS, min_size=1, max_size=6))):
        cuts = draw(st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text))), max_size=7))
        spans = [(start, min(len(text), start + size)) for start, size in cuts]
        entities = tuple(Entity(text[a:b], a, b) for a, b in spans if text[a:b].split())
        rows.append(CaptionEntities(f"c{number}", "i", text, entities))
    return rows


@LAW
@given(rows=captions(), slots=st.integers(1, 4), max_words=st.integers(1, 5), order=st.randoms())
def test_the_first_short_entities_of_each_caption_are_taken(rows, slots: int, max_words: int, order) -> None:
    shuffled = list(rows)
    order.shuffle(shuffled)
    config = EntityConfig(slots=slots, max_words=max_words)
    spans, counts = choose_entities(
        [row.caption_id for row in rows], [row.caption for row in rows], entity_table(shuffled), config, "there"
    )
    assert spans.shape == (len(rows), slots, 2)
    left_out = 0
    for row, found in zip(rows, spans.tolist(), strict=True):
        short = [e for e in row.entities if len(e.text.split()) <= max_words]
        expected = [[e.start, e.end] for e in short[:slots]]
        assert found == expected + [[-1, -1]] * (slots - len(expected))
        left_out += len(row.entities) - len(expected)
    assert counts.used + counts.too_long + counts.beyond_slots == counts.entities
    assert counts.too_long + counts.beyond_slots == left_out
    assert counts.without == int((spans[..., 0] < 0).all(1).sum())
    assert (counts.captions, counts.missing, counts.differing) == (len(rows), 0, 0)


ROWS = [
    CaptionEntities(str(n), "i", text, (Entity(text[:3], 0, 3),)) for n, text in enumerate(["dog runs", "cat", "owl"])
]


def test_captions_without_a_row_and_of_another_text_are_counted_and_named() -> None:
    ids, texts = ["0", "1", "9"], ["dog runs", "Cat!", "owl"]
    spans, counts = choose_entities(ids, texts, entity_table(ROWS), EntityConfig(), "there")
    assert (spans[:, 0, 0] >= 0).tolist() == [True, False, False]
    assert (counts.missing, counts.first_missing) == (1, ("'9'",))
    assert counts.first_differing == ("'1' is 'Cat!' here and 'cat' in 'there'",)
    rows = dict(counts.rows())
    assert rows["captions without a row"] == "1; the first: '9'"
    assert rows["captions of another text"].startswith("1; '1' is")
    assert rows["entities"] == "1 in 3 captions, 0.33 a caption"


@pytest.mark.parametrize(
    ("ids", "texts", "said"),
    [
        (["x", "y"], ["dog runs", "cat"], "none of the 2 captions: ids are like 'x' here and like '0' there"),
        (["0", "1"], ["a", "b"], "knows the ids of the captions but other texts: '0' is 'a' here and 'dog runs' in"),
    ],
)
def test_a_table_of_other_captions_is_refused(ids: list[str], texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose_entities(ids, texts, entity_table(ROWS), EntityConfig(), "there")


def test_no_captions_at_all_are_no_strangers() -> None:
    spans, counts = choose_entities([], [], entity_table(ROWS), EntityConfig(), "there")
    assert spans.shape == (0, 5, 2) and counts.captions == 0
    with pytest.raises(InputError, match="at least 1"):
        EntityConfig(slots=0)
    assert np.issubdtype(spans.dtype, np.int32)
