from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vokenize.ragged import distinct, ranges, starts_of

LISTS = st.lists(st.lists(st.integers(-3, 3), max_size=5), max_size=12)


def flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sum(lists, []), np.int64), np.array([len(one) for one in lists], np.int64)


@given(LISTS, st.randoms())
def test_ranges_take_any_lists_in_any_order(lists: list[list[int]], random) -> None:
    values, lengths = flat(lists)
    chosen = np.array([random.randrange(len(lists)) for _ in range(4)] if lists else [], np.int64)
    got = values[ranges(starts_of(lengths)[chosen], lengths[chosen])]
    assert got.tolist() == sum((lists[i] for i in chosen), [])


@given(LISTS)
def test_distinct_lists_are_the_first_of_each_and_give_all_back(lists: list[list[int]]) -> None:
    unique, which = distinct(*flat(lists))
    expected = list(dict.fromkeys(map(tuple, lists)))
    assert [tuple(lists[i]) for i in unique] == expected
    assert [expected[i] for i in which] == [tuple(one) for one in lists]
