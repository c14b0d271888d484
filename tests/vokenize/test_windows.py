from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import golden

from vokenize.windows import cut, window_lengths


@pytest.mark.parametrize(("case", "lengths"), golden("vokenizer")["segment_lengths"].items())
def test_original_windows_equal_the_original(case: str, lengths: list[int]) -> None:
    count, limit = map(int, case.split("@"))
    assert window_lengths(count, limit, "original") == lengths


@given(count=st.integers(0, 2000), limit=st.integers(1, 200), policy=st.sampled_from(["original", "balanced"]))
def test_pieces_cover_the_line_and_fit_the_window(count: int, limit: int, policy: str) -> None:
    lengths = window_lengths(count, limit, policy)
    assert sum(lengths) == count
    assert all(0 < length <= limit for length in lengths)
    if policy == "balanced" and lengths:
        assert max(lengths) - min(lengths) <= 1
    assert [x for piece in cut(range(count), lengths) for x in piece] == list(range(count))


def test_wrong_lengths_and_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        cut([1, 2], [1])
    with pytest.raises(ValueError, match="at least one"):
        window_lengths(3, 0)
