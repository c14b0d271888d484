"""The heads of VSE++ and VSE-infinity."""

from __future__ import annotations

import math

import torch

from xmatch.models.heads import FcHead, HeadConfig, build_head


def test_the_head_of_vse_pp_sees_features_of_unit_length() -> None:
    head = build_head(3, 2, HeadConfig(kind="unit_fc"))
    assert isinstance(head, FcHead)
    assert set(head.state_dict()) == {"fc.weight", "fc.bias"}
    features = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    unit = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(head(features), head.fc(unit))
    torch.testing.assert_close(head(10 * features), head(features))


def test_the_linear_map_starts_uniform_as_published() -> None:
    torch.manual_seed(0)
    head = build_head(200, 100, HeadConfig(kind="fc"))
    bound = math.sqrt(6) / math.sqrt(300)
    assert 0.98 * bound < head.fc.weight.abs().max().item() <= bound
    assert not head.fc.bias.any()
