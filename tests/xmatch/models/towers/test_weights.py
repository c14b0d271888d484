from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from xmatch.errors import InputError
from xmatch.models.towers import weights


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch owned",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "more": Hostile()}, tmp_path / "a.pth")
    Path("b.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"opt": argparse.Namespace(more=Hostile())}, tmp_path / "c.pth")
    asks = r"asks for posix\.system, which is refused"
    for name, allowed, message in (
        ("a.pth", [], asks),
        ("b.pth", [], "plain pickle"),
        ("c.pth", [argparse.Namespace], asks),
    ):
        with pytest.raises(InputError, match=message):
            weights.read_checkpoint(name, allowed)
    assert not Path("owned").exists()


def test_a_namespace_is_read_only_where_it_is_allowed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.pth")
    torch.save({"opt": argparse.Namespace(embed_size=8)}, path)
    assert weights.read_checkpoint(path, [argparse.Namespace])["opt"].embed_size == 8
    with pytest.raises(InputError, match=r"asks for argparse\.Namespace, which is refused.*vse_infinity"):
        weights.read_checkpoint(path)


def test_a_whole_pickled_model_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth.model")
    with pytest.raises(InputError, match="state_dict"):
        weights.read_checkpoint(str(tmp_path / "a.pth.model"))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused_and_names_the_conversion(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match=r"torch\.jit\.load\(.*\.state_dict\(\)"):
        weights.read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04broken"])
def test_a_damaged_file_is_bad_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match="a.pth"):
        weights.read_checkpoint(str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="do not exist"):
        weights.read_checkpoint(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a state dict"),
        ({}, "expected a state dict"),
        ({"a": 1}, "'a' is int"),
        ({"epoch": 1, "state_dict": {}}, "'epoch' is int. It holds 'state_dict': is it a checkpoint of another kind"),
        ({1: torch.zeros(1)}, "'1' is Tensor"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "twice"),
    ],
)
def test_what_is_no_state_dict_is_refused(value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weights.plain_state(value, "x.pth")


def test_a_long_difference_is_cut() -> None:
    text = weights.difference([f"key{i}" for i in range(20)], [], [])
    assert text == "20 missing: key0, key1, key10, key11, key12, …."


def net() -> nn.Module:
    made = nn.Sequential()
    made.conv, made.bn, made.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
    return made


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_is_filled_but_for_its_classifier(prefix: str) -> None:
    there, here = net(), net()
    state = {prefix + k: v.half() for k, v in there.state_dict().items() if "num_batches" not in k}
    state[f"{prefix}fc.weight"] = torch.zeros(1000, 4)
    before = here.fc.weight.clone()
    weights.fill_backbone(here, state, "x.pth")
    assert torch.equal(here.conv.weight, there.conv.weight.half().float())
    assert torch.equal(here.fc.weight, before)
    for change, message in (
        (lambda s: s.pop("conv.bias"), "1 missing: conv.bias."),
        (lambda s: s.update({"fcnorm.bias": torch.zeros(1)}), "1 unexpected: fcnorm.bias."),
        (lambda s: s.update({"conv.weight": torch.zeros(4, 3, 3, 3)}), r"conv.weight is \(4, 3, 3, 3\), expected"),
    ):
        state = there.state_dict()
        change(state)
        with pytest.raises(InputError, match=message):
            weights.fill_backbone(here, state, "x.pth")


def test_a_classifier_of_several_parts_is_left_out() -> None:
    here = net()
    weights.fill_backbone(here, {k: v for k, v in net().state_dict().items() if "fc" not in k}, "x.pth", ("fc", "fd"))


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    state = nn.DataParallel(net()).state_dict()
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    found = weights.plain_state(weights.read_checkpoint(str(tmp_path / "a.pth")), "a.pth")
    assert set(found) == set(net().state_dict())
    assert set(weights.wrapped(found)) == set(state)
