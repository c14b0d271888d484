from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.data.epoch_order import NO_SAMPLE, epoch_indices


def all_workers(num_samples: int, world_size: int, **kwargs) -> list[np.ndarray]:
    return [epoch_indices(num_samples, worker_rank=rank, world_size=world_size, **kwargs) for rank in range(world_size)]


@given(n=st.integers(0, 200), world=st.integers(1, 5), batch=st.integers(1, 40), epoch=st.integers(0, 3))
def test_every_sample_comes_exactly_once(n: int, world: int, batch: int, epoch: int) -> None:
    parts = all_workers(n, world, seed=1, epoch=epoch, batch_size=batch)
    assert len({part.shape for part in parts}) == 1
    seen = np.concatenate([part.reshape(-1) for part in parts])
    assert sorted(seen[seen != NO_SAMPLE]) == list(range(n))


@given(
    n=st.integers(1, 200), before=st.integers(1, 5), after=st.integers(1, 5), batch=st.integers(1, 40), data=st.data()
)
def test_a_resume_with_another_world_covers_the_rest(n: int, before: int, after: int, batch: int, data) -> None:
    steps = data.draw(st.integers(0, -(-n // batch)))
    position = min(n, steps * batch)
    first = [part[:steps] for part in all_workers(n, before, seed=1, epoch=0, batch_size=batch)]
    rest = all_workers(n, after, seed=1, epoch=0, batch_size=batch, position=position)
    seen = np.concatenate([part.reshape(-1) for part in (*first, *rest)])
    assert sorted(seen[seen != NO_SAMPLE]) == list(range(n))


@given(n=st.integers(1, 60), world=st.integers(1, 5), batch=st.integers(1, 20), data=st.data())
def test_a_resume_at_any_position_covers_the_rest_in_order(n: int, world: int, batch: int, data) -> None:
    position = data.draw(st.integers(0, n))
    alone = epoch_indices(n, seed=1, epoch=2, worker_rank=0, world_size=1, batch_size=1)[:, 0]
    parts = all_workers(n, world, seed=1, epoch=2, batch_size=batch, position=position)
    steps = np.stack(parts, axis=2).reshape(
        len(parts[0]), world * parts[0].shape[1]
    )  # rows of a step, interleaved as workers hold them
    assert steps[steps != NO_SAMPLE].tolist() == alone[position:].tolist()
    assert all((row != NO_SAMPLE).sum() == batch for row in steps[:-1])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_step_holds_the_same_samples_for_any_number_of_workers(world: int) -> None:
    alone = epoch_indices(50, seed=3, epoch=2, worker_rank=0, world_size=1, batch_size=8)
    together = np.concatenate(all_workers(50, world, seed=3, epoch=2, batch_size=8), axis=1)
    for step, row in zip(alone, together, strict=True):
        assert set(step) - {NO_SAMPLE} == set(row) - {NO_SAMPLE}


def test_epochs_differ_and_repeat() -> None:
    one, two, again = (
        epoch_indices(100, seed=1, epoch=e, worker_rank=0, world_size=1, batch_size=10) for e in (0, 1, 0)
    )
    assert (one != two).any()
    assert (one == again).all()


def test_a_rank_out_of_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="worker_rank"):
        epoch_indices(5, seed=0, epoch=0, worker_rank=2, world_size=2, batch_size=1)
