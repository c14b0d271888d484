"""Wrong answers: their laws."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.mvptr.answer_swap import AnswerSwap
from xmatch.errors import InputError
from xmatch.training.recipe import SampleKey

ANSWERS = st.lists(st.sampled_from(["yes", "no", "red", None]), min_size=2, max_size=12).filter(
    lambda found: len(set(found) - {None}) > 1
)


def swap(answers: list[str | None]) -> AnswerSwap:
    return AnswerSwap(pa.chunked_array([pa.array(answers, pa.string())]), "here")


@settings(deadline=None)
@given(ANSWERS, st.integers(0, 99), st.integers(0, 9))
def test_right_is_the_own_text_and_wrong_another_of_the_data(answers: list[str | None], seed: int, epoch: int) -> None:
    found = swap(answers).draw(range(len(answers)), SampleKey(seed, epoch))
    for own, read, label in zip(answers, *found, strict=True):
        assert label == (-1 if own is None else int(read != own))
        assert read in answers and (read is None) == (own is None)


@settings(deadline=None)
@given(ANSWERS, st.permutations(range(12)), st.integers(0, 99))
def test_a_draw_is_of_seed_epoch_and_sample_alone(answers: list[str | None], order: list[int], seed: int) -> None:
    made, rows, key = swap(answers), [row for row in order if row < len(answers)], SampleKey(seed, 1)
    whole = made.draw(range(len(answers)), key)
    again = made.draw(np.array(rows), key)
    assert again.answers == [whole.answers[row] for row in rows]
    assert again.labels == [whole.labels[row] for row in rows]


def test_half_are_wrong_and_as_frequent_as_in_the_data() -> None:
    answers: list[str | None] = ["yes"] * 6 + ["no"] * 3 + ["red"] + [None] * 5
    made, count = swap(answers), 4000
    drawn = [made.draw(range(15), SampleKey(seed, 0)) for seed in range(count // 10)]
    labels = np.array([one.labels for one in drawn])
    assert (labels[:, 10:] == -1).all()
    assert labels[:, :10].mean() == pytest.approx(0.5, abs=0.03)
    read = np.array([one.answers[:10] for one in drawn])
    wrong = read[:, :6][labels[:, :6] == 1]
    assert (wrong == "no").mean() == pytest.approx(0.75, abs=0.04)
    wrong = read[:, 9][labels[:, 9] == 1]
    assert (wrong == "yes").mean() == pytest.approx(2 / 3, abs=0.12)


def test_epochs_and_seeds_draw_anew() -> None:
    made = swap(["yes", "no"] * 40)
    labels = {tuple(made.draw(range(80), SampleKey(*key)).labels) for key in ((0, 0), (0, 1), (1, 0))}
    assert len(labels) == 3


@pytest.mark.parametrize("answers", [[None, None], ["yes", None, "yes"]])
def test_where_nothing_can_be_wrong_there_is_nothing_to_learn(answers: list[str | None]) -> None:
    with pytest.raises(InputError, match=f"here has {len(set(answers) - {None})} different answers"):
        swap(answers)
