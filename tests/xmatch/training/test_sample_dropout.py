from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.training.sample_dropout import SampleDropout

LAW = settings(deadline=None, max_examples=25)


def dropped(samples: list[int], *shape: int, p: float = 0.5, seed: int = 1, calls: int = 1) -> torch.Tensor:
    """The last of `calls` dropouts of ones (B, *shape)."""
    torch.manual_seed(seed)
    with SampleDropout(torch.tensor(samples)):
        for _ in range(calls):
            rows = F.dropout(torch.ones(len(samples), *shape), p)
    return rows


@LAW
@given(
    samples=st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True),
    others=st.lists(st.integers(0, 2**62), max_size=5),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    extra=st.integers(0, 5),
)
def test_a_sample_meets_its_masks_in_any_batch(samples, others, widths, extra) -> None:
    alone = torch.cat([dropped([sample], *widths) for sample in samples])
    assert torch.equal(dropped([*others, *samples], *widths)[len(others) :], alone)
    longer = dropped(samples, widths[0] + extra, widths[1])
    assert torch.equal(longer[:, : widths[0]], alone)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rates_and_means_are_those_of_dropout(p: float) -> None:
    rows = dropped(list(range(50)), 40, 50, p=p)
    assert abs(float((rows == 0).float().mean()) - p) < 0.005
    if p < 1:
        torch.testing.assert_close(rows[rows > 0], torch.full((int((rows > 0).sum()),), 1 / (1 - p)))
    for axis in (0, 1, 2):  # no sample, place or column is favoured
        others = tuple(a for a in (0, 1, 2) if a != axis)
        assert float((((rows == 0).float().mean(others)) - p).abs().max()) < 0.07


def test_draws_differ_by_sample_seed_and_call() -> None:
    masks = [dropped([1], 200), dropped([2], 200), dropped([1], 200, seed=2), dropped([1], 200, calls=2)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 60 < int((one != other).sum()) < 140  # as independent halves are: 100, deviation 7


def test_neighbours_are_independent() -> None:
    kept = (dropped(list(range(64)), 64, 64) > 0).double() - 0.5
    for axis in (0, 1, 2):
        first, second = kept.narrow(axis, 0, 63), kept.narrow(axis, 1, 63)
        assert abs(float((first * second).mean() * 4)) < 0.01


def test_evaluation_and_other_functions_are_left_alone() -> None:
    x = torch.randn(3, 4)
    with SampleDropout(torch.arange(3)):
        assert torch.equal(torch.nn.Dropout(0.5).eval()(x), x)
        assert torch.equal(F.relu(x), x.clamp_min(0))
        inplace = x.clone()
        out = F.dropout(inplace, 0.5, inplace=True)
    assert out is inplace
    assert not torch.equal(inplace, x)


def test_rows_that_are_no_samples_are_dropped_all_the_same() -> None:
    rows = dropped([5, 6], 1)
    torch.manual_seed(1)
    with SampleDropout(torch.tensor([5, 6])):
        ragged = F.dropout(torch.ones(1000, 3), 0.3)
    assert abs(float((ragged == 0).float().mean()) - 0.3) < 0.05
    assert rows.shape == (2, 1)


@pytest.mark.parametrize("mask", ["none", "bool", "additive", "causal", "grouped"])
def test_attention_without_drops_is_torchs(mask: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    real = torch.tensor([[True, True, True, False, True]])
    more = {
        "none": {},
        "bool": {"attn_mask": real},
        "additive": {"attn_mask": torch.where(real, 0.0, -1e4), "scale": 0.3},
        "causal": {"is_causal": True},
        "grouped": {"enable_gqa": True},
    }[mask]
    if mask == "grouped":
        key, value = key[:, :2], value[:, :2]
    expected = F.scaled_dot_product_attention(query, key, value, **more)
    with SampleDropout(torch.arange(2)):
        for p in (0.0, 1e-12):
            found = F.scaled_dot_product_attention(query, key, value, dropout_p=p, **more)
            torch.testing.assert_close(found, expected)
        assert (F.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **more) - expected).abs().max() > 0.01
