from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vokenize.alignment import Spans, align, align_lines, in_order

PLACES = st.integers(0, 12)


@st.composite
def spans(draw, least: int = 0, most: int = 7) -> Spans:
    """Spans in reading order; some touch, overlap, repeat or are empty."""
    pairs = draw(st.lists(st.tuples(PLACES, st.integers(0, 5)), min_size=least, max_size=most))
    starts = np.array(sorted(start for start, _ in pairs), np.int64)
    ends = starts + np.array([width for _, width in pairs], np.int64)
    return in_order(Spans(starts, ends))


def shared(old: Spans, new: Spans) -> np.ndarray:
    """(M, N) characters in common; minus the gap where there are none."""
    return np.minimum(old.ends, new.ends[:, None]) - np.maximum(old.starts, new.starts[:, None])


@given(old=spans(least=1), new=spans())
def test_each_token_takes_after_the_one_it_shares_most_with(old: Spans, new: Spans) -> None:
    found = align(old, new)
    table = shared(old, new)
    assert len(found.rows) == len(new.starts)
    np.testing.assert_array_equal(table[np.arange(len(table)), found.rows], table.max(1, initial=-99))
    np.testing.assert_array_equal(found.overlaps, table.max(1, initial=-99) > 0)


@given(old=spans(least=1), new=spans())
def test_tokens_never_step_back(old: Spans, new: Spans) -> None:
    assert (np.diff(align(old, new).rows) >= 0).all()


@given(old=spans(least=1))
def test_the_same_tokens_are_the_identity(old: Spans) -> None:
    assert align(old, old).rows.tolist() == list(range(len(old.starts)))


@given(old=spans(least=1), new=spans())
def test_among_equals_the_earliest_is_taken_but_for_the_very_same_characters(old: Spans, new: Spans) -> None:
    found, table = align(old, new), shared(old, new)
    first = np.maximum.accumulate(table.argmax(1)) if len(table) else []
    same = (old.starts == new.starts[:, None]) & (old.ends == new.ends[:, None])
    until = len(new.starts) if not same.any() else int(same.any(1).argmax())
    assert found.rows[:until].tolist() == list(first[:until])


@given(
    lines=st.lists(st.tuples(spans(least=1, most=4), spans(most=4)), min_size=1, max_size=4),
    empty=st.integers(0, 4),
)
def test_lines_together_are_lines_alone(lines: list[tuple[Spans, Spans]], empty: int) -> None:
    nothing = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    lines = [*lines[:empty], (nothing, nothing), *lines[empty:]]
    old, new = (Spans(*(np.concatenate(c) for c in zip(*(line[i] for line in lines)))) for i in (0, 1))
    old_counts, new_counts = (np.array([len(line[i].starts) for line in lines]) for i in (0, 1))
    together = align_lines(old, old_counts, new, new_counts)
    first = np.cumsum(old_counts) - old_counts
    alone = [align(*line).rows + start for line, start in zip(lines, first, strict=True)]
    assert together.rows.tolist() == np.concatenate(alone).tolist()


def test_pieces_of_one_character_take_turns() -> None:
    old = Spans(np.array([0, 4, 4, 5]), np.array([4, 5, 5, 6]))
    new = Spans(np.array([4, 4, 4, 5]), np.array([5, 5, 5, 6]))
    assert align(old, new).rows.tolist() == [1, 2, 2, 3]


def test_a_token_that_shares_nothing_takes_after_the_nearest_and_says_so() -> None:
    old = Spans(np.array([0, 10]), np.array([3, 12]))
    found = align(old, Spans(np.array([3, 6, 8]), np.array([4, 7, 9])))
    assert (found.rows.tolist(), found.overlaps.tolist()) == ([0, 0, 1], [False] * 3)


def test_a_line_with_new_tokens_alone_is_refused() -> None:
    one, none = np.array([1]), np.array([0])
    with pytest.raises(ValueError, match="needs an old one"):
        align_lines(Spans(none[:0], none[:0]), none, Spans(none, one), one)
