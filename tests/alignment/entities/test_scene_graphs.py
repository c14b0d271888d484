"""Scene-graph tuples by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.entities.lemmas import noun_lemma, verb_lemma
from alignment.entities.scene_graphs import scene_tuples
from alignment.entities.taggers import load_tagger

TAGGER = load_tagger("textblob")
KITCHEN = "A narrow kitchen filled with appliances and cooking utensils."
YAK = "A child holding a flowered umbrella and petting a yak."


def tuples(caption: str) -> list[tuple[str, ...]]:
    return scene_tuples(TAGGER(caption))


def test_the_published_kitchen_gives_its_published_tuples() -> None:
    assert tuples(KITCHEN) == [
        ("appliance",),
        ("kitchen",),
        ("kitchen", "fill with", "appliance"),
        ("kitchen", "fill with", "utensil"),
        ("kitchen", "narrow"),
        ("utensil",),
        ("utensil", "cooking"),
    ]


def test_the_published_yak_gives_its_published_tuples_and_who_does_what() -> None:
    published = [("child",), ("umbrella",), ("umbrella", "flowered"), ("yak",)]
    found = tuples(YAK)
    assert [one for one in found if len(one) < 3] == published
    assert [one for one in found if len(one) == 3] == [("child", "hold", "umbrella"), ("child", "pet", "yak")]


@pytest.mark.parametrize(
    ("caption", "relations"),
    [
        ("Two women are riding brown horses", [("woman", "ride", "horse")]),
        ("A man and a girl sit on a bench", [("girl", "sit on", "bench"), ("man", "sit on", "bench")]),
        ("A man in a red cap rides on top of a bus", [("man", "in", "cap"), ("man", "ride on top of", "bus")]),
        ("A cup next to the plate", [("cup", "next to", "plate")]),
        ("The farmer's tractor", [("farmer", "have", "tractor")]),
        ("a slice of cake on a plate of glass", [
            ("plate", "of", "glass"), ("slice", "of", "cake"), ("slice", "on", "plate")]),
        ("A boy waits while a bus passes", []),
        ("A bird, a tree", []),
        ("", []),
    ],
)  # fmt: skip
def test_relations_have_their_subjects(caption: str, relations: list[tuple[str, ...]]) -> None:
    assert [one for one in tuples(caption) if len(one) == 3] == relations


def test_predicates_and_numbers_are_attributes() -> None:
    found = tuples("Three large boats are empty and a seagull is sleeping.")
    assert {("boat", "three"), ("boat", "large"), ("boat", "empty"), ("seagull", "sleep")} <= set(found)


@given(st.lists(st.sampled_from("a two red dog dogs and , of on in is runs running seen 's the top . while".split())))
def test_tuples_are_sorted_unique_and_speak_of_objects(words: list[str]) -> None:
    found = tuples(" ".join(words))
    assert found == sorted(set(found))
    objects = {one[0] for one in found if len(one) == 1}
    assert all({one[0], one[-1]} <= objects for one in found if len(one) == 3)
    assert all(one[0] in objects for one in found)


@pytest.mark.parametrize(
    ("form", "lemma"),
    [("riding", "ride"), ("runs", "run"), ("sitting", "sit"), ("carries", "carry"), ("held", "hold"), ("is", "be"),
     ("watches", "watch"), ("filled", "fill"), ("falling", "fall"), ("zzings", "zzings")],
)  # fmt: skip
def test_verbs_have_their_basic_forms(form: str, lemma: str) -> None:
    vocabulary = dict.fromkeys("ride run sit carry watch fill fall rid sitt".split(), "VB")
    del vocabulary["rid"], vocabulary["sitt"]
    assert verb_lemma(form, vocabulary) == lemma


def test_nouns_without_singular_stay() -> None:
    assert noun_lemma("jeans", lambda word: word[:-1]) == "jeans"
    assert noun_lemma("dogs", lambda word: word[:-1]) == "dog"
