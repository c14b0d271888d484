"""Student's paired test against numbers of printed tables."""

from __future__ import annotations

import pytest

from xmatch.evaluation.paired import Paired, paired_test, student_p


@pytest.mark.parametrize(
    ("df", "t"),  # the two-sided 5 % points of every printed table
    [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451), (5, 2.5705818), (9, 2.2621572), (30, 2.0422725)],
)
def test_five_per_cent_points(df: int, t: float) -> None:
    assert student_p(t, df) == pytest.approx(0.05, abs=1e-7)
    assert student_p(-t, df) == student_p(t, df)
    assert student_p(0.0, df) == 1.0


def test_p_falls_as_t_grows() -> None:
    assert all(student_p(t / 4, df) > student_p((t + 1) / 4, df) for df in range(1, 12) for t in range(20))


def test_hand_numbers() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt 3; with two degrees of freedom p = 1 - t / sqrt(2 + t^2).
    found = paired_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found[:3] == (3, 2.0, 1.0)
    assert found.t == pytest.approx(3.4641016)
    assert found.p == pytest.approx(1 - 12**0.5 / 14**0.5)


def test_swapping_the_sides_turns_the_sign_only() -> None:
    a, b = [3.0, 1.0, 4.0, 1.0], [2.0, 7.0, 1.0, 8.0]
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.difference, one.t, one.p) == (-other.difference, -other.t, other.p)


@pytest.mark.parametrize(("a", "b"), [([5.0], [4.0]), ([1.1, 2.1], [1.0, 2.0])])
def test_no_t_for_one_pair_or_equal_differences(a: list[float], b: list[float]) -> None:
    found = paired_test(a, b)
    assert found == Paired(len(a), found.difference, found.deviation, None, None)
