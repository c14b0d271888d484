"""Phrases by rule, and how far they agree with imported ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.entities.scene_graphs import scene_tuples
from alignment.entities.taggers import load_tagger
from alignment.mvptr.phrases import Agreement, agreement, overall, phrases_of

TAGGER = load_tagger("textblob")
PUBLISHED = {
    "A child holding a flowered umbrella and petting a yak.": [
        ["child"], ["umbrella"], ["umbrella", "flowered"], ["yak"]],
    "A narrow kitchen filled with appliances and cooking utensils.": [
        ["appliance"], ["kitchen"], ["kitchen", "fill with", "appliance"], ["kitchen", "fill with", "utensil"],
        ["kitchen", "narrow"], ["utensil"], ["utensil", "cooking"]],
}  # fmt: skip
WORDS = "a the two red man dog hat and , of in is holding wearing held runs . while".split()
PHRASES = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), max_size=6)


@pytest.mark.parametrize("text", PUBLISHED)
def test_the_published_sentences_give_their_published_phrases_in_order(text: str) -> None:
    assert [list(one) for one in phrases_of(text, TAGGER)] == PUBLISHED[text]


@pytest.mark.parametrize(
    ("text", "relations"),
    [
        ("a boy wearing a hat, holding a bat and swinging a ball", []),
        ("a boy holding a cup in one hand and petting a dog", [("cup", "in", "hand")]),
        ("a man is holding a cup and petting a dog", [("man", "hold", "cup"), ("man", "pet", "dog")]),
        ("a man sitting on a bench and holding a cup", [("man", "hold", "cup"), ("man", "sit on", "bench")]),
        ("a man holding a cup while a girl pets a dog", [("girl", "pet", "dog"), ("man", "hold", "cup")]),
        ("a man holding a cup", [("man", "hold", "cup")]),
    ],
)
def test_participles_that_are_joined_have_no_direct_objects(text: str, relations: list[tuple[str, ...]]) -> None:
    assert [one for one in phrases_of(text, TAGGER) if len(one) == 3] == relations


@given(st.lists(st.sampled_from(WORDS)))
def test_phrases_are_scene_tuples_but_for_some_relations(words: list[str]) -> None:
    text = " ".join(words)
    found, every = phrases_of(text, TAGGER), scene_tuples(TAGGER(text))
    assert found == sorted(set(found)) and set(found) <= set(every)
    assert all(len(one) == 3 for one in set(every) - set(found))
    assert phrases_of(text.upper(), TAGGER) == found


@given(PHRASES, PHRASES)
def test_agreement_is_between_nothing_and_all_and_has_two_sides(ours: list[list[str]], theirs: list[list[str]]) -> None:
    found, turned = agreement(ours, theirs), agreement(theirs, ours)
    assert (found.precision, found.jaccard) == (turned.recall, turned.jaccard)
    assert 0 <= found.jaccard <= min(found.precision, found.recall) <= 1
    same = {tuple(one) for one in ours} == {tuple(one) for one in theirs}
    assert (found.jaccard == 1) == same
    assert agreement([*ours, *ours], theirs) == found


def test_agreement_over_sentences_by_hand() -> None:
    assert overall([Agreement(2, 4, 1), Agreement(2, 2, 2)]) == {
        "precision": 3 / 4, "recall": 3 / 6, "jaccard": 3 / 7,
        "precision_by_sentence": 3 / 4, "recall_by_sentence": 5 / 8, "jaccard_by_sentence": (1 / 5 + 1) / 2,
    }  # fmt: skip
    assert overall([])["jaccard"] == 1 and overall([])["jaccard_by_sentence"] == 0
