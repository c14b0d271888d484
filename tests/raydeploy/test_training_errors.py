"""What a person reads when Ray ends a training run."""

from __future__ import annotations

import pytest
import ray.train as ray_train
from ray.exceptions import OutOfMemoryError

from raydeploy.training import raise_ours
from xmatch.errors import InputError

SAID = (
    "Memory\n4 worker(s) were killed due to the node running low on memory. Memory on the node was 21.82GB used / "
    "23.54GB limit\nOOM kill reason: above the threshold\nTop 10 memory users"
)


def ended(error: Exception) -> None:
    def fit() -> None:
        raise error

    raise_ours(fit)


@pytest.mark.parametrize(
    "error",
    [ray_train.ControllerError(OutOfMemoryError(SAID)), ray_train.WorkerGroupError("x", {1: OutOfMemoryError(SAID)})],
)
def test_a_want_of_memory_is_told_in_one_paragraph(error: Exception) -> None:
    with pytest.raises(InputError) as found:
        ended(error)
    assert "21.82GB used / 23.54GB limit" in str(found.value)
    assert "trainer.batch_size" in str(found.value) and "\n" not in str(found.value)


def test_bad_input_of_a_worker_comes_home_and_a_defect_stays_one() -> None:
    with pytest.raises(InputError, match="row 3 is broken"):
        ended(ray_train.WorkerGroupError("x", {0: InputError("row 3 is broken")}))
    with pytest.raises(ray_train.ControllerError, match="a defect"):
        ended(ray_train.ControllerError(ValueError("a defect")))
