from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from xmatch.errors import InputError
from xmatch.models.importers import mapping


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch owned",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "more": Hostile()}, tmp_path / "a.pth")
    Path("b.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"opt": argparse.Namespace(more=Hostile())}, tmp_path / "c.pth")
    for name, allowed in (("a.pth", []), ("b.pth", []), ("c.pth", [argparse.Namespace])):
        with pytest.raises(InputError, match="cannot be read as tensors"):
            mapping.read_checkpoint(name, allowed)
    assert not Path("owned").exists()


def test_a_namespace_is_read_only_where_it_is_allowed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.pth")
    torch.save({"opt": argparse.Namespace(embed_size=8)}, path)
    assert mapping.read_checkpoint(path, [argparse.Namespace])["opt"].embed_size == 8
    with pytest.raises(InputError, match="argparse.Namespace"):
        mapping.read_checkpoint(path)


def test_a_whole_pickled_model_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth.model")
    with pytest.raises(InputError, match="state_dict"):
        mapping.read_checkpoint(str(tmp_path / "a.pth.model"))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused_and_names_the_conversion(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match=r"torch\.jit\.load\(.*\.state_dict\(\)"):
        mapping.read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04broken"])
def test_a_damaged_file_is_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match="a.pth"):
        mapping.read_checkpoint(str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="does not exist"):
        mapping.read_checkpoint(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a state dict"),
        ({}, "expected a state dict"),
        ({"a": 1}, "'a' is int"),
        ({1: torch.zeros(1)}, "'1' is Tensor"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "twice"),
    ],
)
def test_what_is_no_state_dict_is_refused(value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mapping.plain_state(value, "x.pth")


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
        mapping.fill(model(), state, RENAMES, "x.pth")
    text = str(raised.value)
    assert "'x.pth' does not fit: 1 missing: first.weight (nearest there: first.wieght)." in text
    assert "1 unexpected: first.wieght." in text
    assert "second.bias is (7,), expected (3,)" in text


def test_a_long_difference_is_cut() -> None:
    text = mapping.difference([f"key{i}" for i in range(20)], [], [])
    assert text == "20 missing: key0, key1, key10, key11, key12, …."
