"""The order of samples: a pure function of (seed, epoch, position, world)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NO_SAMPLE = -1
"""Fills the last step where the samples do not go round."""


def epoch_indices(
    num_samples: int,
    *,
    seed: int,
    epoch: int,
    worker_rank: int,
    world_size: int,
    batch_size: int,
    position: int = 0,
) -> npt.NDArray[np.int64]:
    """What one worker sees in what is left of an epoch.

    The epoch is one permutation of all samples, drawn from (seed, epoch). Steps take `batch_size` samples of it in
    turn, and step i gives worker r the samples r, r + world_size, … of them, so that the set of samples of a step
    does not depend on the number of workers, and each sample comes exactly once per epoch.

    Args:
        num_samples: samples in the epoch.
        seed: of the run.
        epoch: 0-based.
        worker_rank: this worker, 0-based.
        world_size: number of workers, which may differ from that before a resume.
        batch_size: samples in one step over all workers together.
        position: samples of the epoch that are done.

    Returns:
        (steps, ceil(batch_size / world_size)) int64, -1 where a step has no more samples; every worker has the same
        number of steps.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_samples < 0 or batch_size < 1 or not 0 <= worker_rank < world_size or not 0 <= position <= num_samples:
        raise ValueError(
            f"need num_samples >= 0, batch_size >= 1, worker_rank in 0 … {world_size - 1} and position in 0 … "
            f"{num_samples}; got {num_samples}, {batch_size}, {worker_rank}, {position}"
        )
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)[position:]
    steps, width = -(-len(order) // batch_size), -(-batch_size // world_size)
    padded = np.full((steps, width * world_size), NO_SAMPLE, np.int64)
    for step in range(steps):
        samples = order[step * batch_size : (step + 1) * batch_size]
        padded[step, : len(samples)] = samples
    return np.ascontiguousarray(padded[:, worker_rank::world_size])
