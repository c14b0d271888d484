from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vokenize import voken_agreement
from vokenize.voken_agreement import Agreement, kappa, shared_vokens


@st.composite
def two_runs(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Q, 3) vokens of two runs among 6 images, and (L,) queries of each line."""
    per_line = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return *(
        np.array([rng.permutation(6)[:3] for _ in range(per_line.sum())], int).reshape(-1, 3) for _ in "ab"
    ), per_line


def figures(one, other, per_line, k: int = 3) -> dict:
    found = Agreement(6, k)
    found.add(one, other, per_line)
    return found.figures()


@given(runs=two_runs())
def test_a_run_agrees_with_itself(runs) -> None:
    one, _, per_line = runs
    found = figures(one, one, per_line)
    if per_line.sum():
        assert [found[name] for name in ("same_best", "overlap_at_k", "same_best_by_line")] == [1.0, 1.0, 1.0]
        assert found["kappa"] in (None, pytest.approx(1))


@given(runs=two_runs(), cut=st.integers(0, 6))
def test_it_is_counted_by_hand_whichever_way_round_and_however_cut(runs, cut: int) -> None:
    one, other, per_line = runs
    found = figures(one, other, per_line)
    assert figures(other, one, per_line) == pytest.approx(found, nan_ok=True)
    same = [float(a[0] == b[0]) for a, b in zip(one, other, strict=True)]
    both = [len(set(a) & set(b)) / 3 for a, b in zip(one, other, strict=True)]
    ends = np.cumsum(per_line)
    for values, name in ((same, "same_best"), (both, "overlap_at_k")):
        assert found[name] == pytest.approx(np.mean(values) if values else 0)
        lines = [np.mean(values[e - n : e]) for e, n in zip(ends, per_line, strict=True) if n]
        assert found[f"{name}_by_line"] == pytest.approx(np.mean(lines) if lines else 0)
    parts, place = Agreement(6, 3), int(per_line[:cut].sum())
    parts.add(one[:place], other[:place], per_line[:cut])
    parts.add(one[place:], other[place:], per_line[cut:])
    assert parts.figures() == pytest.approx(found)


def test_kappa_of_the_textbook_table() -> None:
    """Two raters of 50 grants: 20 both yes, 15 both no, 25 and 30 yes in all; kappa 0.4."""
    assert kappa(35, 50, np.array([25, 25]), np.array([30, 20])) == pytest.approx(0.4)
    assert kappa(5, 5, np.array([5, 0]), np.array([5, 0])) is None
    assert kappa(0, 0, np.zeros(2), np.zeros(2)) is None


def test_many_queries_are_compared_in_blocks(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    one, other = (np.array([rng.permutation(20)[:5] for _ in range(40)]) for _ in "ab")
    whole = shared_vokens(one, other)
    monkeypatch.setattr(voken_agreement, "COMPARED_AT_ONCE", 75)
    assert shared_vokens(one, other).tolist() == whole.tolist()
    assert whole.tolist() == [len(set(a) & set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]


def test_queries_that_do_not_fit_the_lines_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 and 1 queries"):
        Agreement(6, 1).add(np.zeros((2, 1), int), np.zeros((1, 1), int), np.array([2]))
