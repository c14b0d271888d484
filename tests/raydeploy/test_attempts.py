from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydeploy.attempts import MOST_LEFT_OUT, MOST_ROUNDS, TRIES, Attempt, AttemptNotes, after_death, after_probe
from xmatch.errors import InputError

ROWS = 50


def live(harmful: set[int]) -> tuple[Attempt, int]:
    """A shard whose worker dies exactly of certain rows: the attempt that ends well, and the deaths before it."""
    attempt, deaths = Attempt(), 0
    while True:
        tried = set(range(*(attempt.probe or (0, ROWS)))) - set(attempt.left_out)
        if tried & harmful:
            deaths += 1
            attempt = after_death(attempt, ROWS, "s")
        elif attempt.probe is None:
            return attempt, deaths
        else:
            attempt = after_probe(attempt)


@given(st.sets(st.integers(0, ROWS - 1), max_size=MOST_LEFT_OUT))
def test_exactly_the_harmful_rows_are_left_out_after_few_deaths(harmful: set[int]) -> None:
    attempt, deaths = live(harmful)
    assert set(attempt.left_out) == harmful
    assert deaths <= len(harmful) * (TRIES + 7)


def test_too_many_harmful_rows_stop_the_run() -> None:
    with pytest.raises(InputError, match=f"even without {MOST_LEFT_OUT} of its rows"):
        live(set(range(MOST_LEFT_OUT + 1)))


def test_deaths_of_another_cause_blame_no_row() -> None:
    attempt = Attempt()
    with pytest.raises(InputError, match="though none of its rows does so alone"):
        for _ in range(100):
            while attempt.probe is not None:
                attempt = after_probe(attempt)
            attempt = after_death(attempt, ROWS, "s")
    assert attempt.left_out == ()
    assert attempt.rounds == MOST_ROUNDS


def test_a_preempted_worker_is_just_followed_by_another() -> None:
    assert after_death(Attempt(), ROWS, "s") == Attempt(deaths=1)


def test_notes_are_found_again_and_forgotten_by_a_new_run(tmp_path) -> None:
    notes = AttemptNotes(str(tmp_path))
    assert notes.begin("a", ROWS) == Attempt()
    assert notes.begin("a", ROWS) == Attempt(deaths=1)
    for _ in range(TRIES - 1):
        attempt = AttemptNotes(str(tmp_path)).begin("a", ROWS)
    assert attempt.probe == (0, ROWS // 2)
    notes.clear()
    assert notes.begin("a", ROWS) == Attempt()
