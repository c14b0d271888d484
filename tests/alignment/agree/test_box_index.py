"""Boxes by phrase and image are those that a walk over the table finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.agree.box_index import BoxIndex
from alignment.entities.entity_tables import Box, box_table

IMAGES, PHRASES = ["a", "b", "c"], ["dog", "a cat", "hat"]
BOXES = st.lists(
    st.builds(
        Box,
        image_id=st.sampled_from(IMAGES),
        phrase=st.sampled_from(PHRASES),
        source=st.just("grounding"),
        x1=st.just(0.0),
        y1=st.just(0.0),
        x2=st.sampled_from([0.25, 0.5, 1.0]),
        y2=st.just(0.5),
        score=st.sampled_from([0.5, 1.0]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(boxes=BOXES)
def test_an_index_finds_what_a_walk_finds(boxes: list[Box]) -> None:
    index = BoxIndex(box_table(boxes))
    assert index.image_ids == list(dict.fromkeys(box.image_id for box in boxes))
    assert index.phrases == list(dict.fromkeys(box.phrase for box in boxes))
    for image in [*IMAGES, "unknown"]:
        shown = dict.fromkeys(box.phrase for box in boxes if box.image_id == image)
        assert set(index.phrases_of(image)) == set(shown) and len(index.phrases_of(image)) == len(shown)
        for phrase in [*PHRASES, "unknown"]:
            own = [box for box in boxes if (box.image_id, box.phrase) == (image, phrase)]
            assert index.boxes(image, phrase) == own
            assert index.has(image, phrase) == bool(own)
            others = {box.image_id for box in boxes if box.phrase == phrase and box.image_id != image}
            assert {index.image_ids[at] for at in index.images_of(phrase, image)} == others
            assert len(index.images_of(phrase, image)) == len(others)
