from __future__ import annotations

import pytest
import torch
from torch import nn

from xmatch.errors import InputError
from xmatch.models.importers import mapping

RENAMES = (("0.", "first."), ("1.", "second."))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_a_map_goes_both_ways_and_leaves_alone_what_it_does_not_name() -> None:
    there, here = model(), model()
    state = mapping.collect(there, RENAMES)
    assert set(state) == {
        *("first.weight", "first.bias", "second.weight", "second.bias"),
        *("second.running_mean", "second.running_var", "second.num_batches_tracked"),
    }
    before = here[2].weight.clone()
    state.pop("second.num_batches_tracked")
    mapping.fill(here, {k: v.double() for k, v in state.items()}, RENAMES, "x.pth")
    assert torch.equal(here[0].weight, there[0].weight)
    assert here[0].weight.dtype == torch.float32
    assert torch.equal(here[2].weight, before)


def test_the_difference_of_keys_is_readable() -> None:
    state = mapping.collect(model(), RENAMES)
    state["first.wieght"] = state.pop("first.weight")
    state["second.bias"] = torch.zeros(7)
    with pytest.raises(InputError) as raised:
        mapping.fill(model(), state, RENAMES, "x.pth", hint="Try another.")
    text = str(raised.value)
    assert text.endswith("expected (3,). Try another."), text
    assert "'x.pth' does not fit: 1 missing: first.weight (nearest there: first.wieght)." in text
    assert "1 unexpected: first.wieght." in text
    assert "second.bias is (7,), expected (3,)" in text


def test_what_is_stored_and_never_read_is_left_out_and_nothing_else() -> None:
    state = mapping.collect(model(), RENAMES) | {"first.position_ids": torch.zeros(1)}
    mapping.fill(model(), state, RENAMES, "x.pth", unused="position_ids$|bias$")
    state.pop("first.bias")
    with pytest.raises(InputError, match="1 missing: first.bias"):
        mapping.fill(model(), state, RENAMES, "x.pth", unused="position_ids$|bias$")
    with pytest.raises(InputError, match="1 unexpected: first.position_ids"):
        mapping.fill(model(), state | {"first.bias": torch.zeros(3)}, RENAMES, "x.pth")


def test_a_shape_with_other_axes_is_named() -> None:
    with pytest.raises(InputError, match=r"fc.weight is \(3,\), expected 2 axes"):
        mapping.shape_of({"fc.weight": torch.zeros(3)}, "fc.weight", "x.pth")
