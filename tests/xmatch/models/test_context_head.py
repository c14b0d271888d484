"""SelfAlign's context head gives the original's numbers, and what is padded takes part in nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import golden

from xmatch.models.context_head import ContextHead

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
ORIGINAL_NAMES = {
    "ctx_fc": "guide_fc",
    "ctx_fc_bn1": "guide_norm",
    "ctx_fc_bn2": "local_norm",
    "fusion_fn": "gate",
}


def original_head(params: dict) -> ContextHead:
    head = ContextHead(len(params["ctx_fc.bias"])).eval()
    named = {key.split(".", 1)[0]: key for key in params}
    assert set(ORIGINAL_NAMES) <= set(named)
    state = {
        f"{ORIGINAL_NAMES[first]}.{rest}": torch.tensor(value)
        for first, rest, value in ((*key.split(".", 1), value) for key, value in params.items())
        if first in ORIGINAL_NAMES
    }
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert not unexpected and all("batches_tracked" in key for key in missing)
    return head


def caption_states(case: dict) -> torch.Tensor:
    """What the GRU of VSRN with SelfAlign says at each word, zeros on padding."""
    params = {key: torch.tensor(value) for key, value in case["text_params"].items()}
    words = params["embed.weight"][torch.tensor(case["ids"])] @ params["local_fc.weight"].T + params["local_fc.bias"]
    gru = torch.nn.GRU(4, 4, batch_first=True)
    gru.load_state_dict({key.removeprefix("rnn."): v for key, v in params.items() if key.startswith("rnn.")})
    real = torch.arange(words.shape[1])[None, :] < torch.tensor(case["lengths"])[:, None]
    states: torch.Tensor = gru(words)[0].detach()
    return states.masked_fill(~real[..., None], 0.0)


def golden_cases() -> dict[str, tuple[dict, torch.Tensor, dict]]:
    vsrn, camera = golden("selfalign")["vsrn_selfalign"], golden("selfalign_camera")
    return {
        "vsrn": (vsrn["text_params"], caption_states(vsrn), vsrn["text"]),
        "camera": (camera["text_params"], torch.tensor(camera["text"]["agsa"]), camera["text"]),
    }


@pytest.mark.parametrize("host", ["vsrn", "camera"])
def test_head_is_the_originals(host: str) -> None:
    params, states, expected = golden_cases()[host]
    with torch.no_grad():  # padding takes part in the originals, so the mask is true everywhere
        found = original_head(params)(states, torch.ones(states.shape[:2], dtype=torch.bool))
    for name, theirs in (("guide", "global"), ("locals", "locals"), ("fused", "fused")):
        torch.testing.assert_close(getattr(found, name), torch.tensor(expected[f"context_{theirs}"]).float(), **CLOSE)


def test_training_uses_the_batch_itself() -> None:
    torch.manual_seed(0)
    head, states = ContextHead(4), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    found = head(states, mask)
    rows = states[mask]
    scaled = torch.relu((rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt())
    expected = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(found.locals[mask], expected)
    torch.testing.assert_close(head.local_norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(found.mean_local[2], found.locals[2, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.booleans(), st.integers(0, 2**20))
def test_padding_takes_part_in_nothing(batch: int, size: int, training: bool, seed: int) -> None:
    torch.manual_seed(seed)
    batch += training  # batch statistics need two samples
    head, states = ContextHead(4).train(training), torch.randn(batch, size, 4)
    lengths = torch.randint(1, size + 1, (batch,))
    mask = torch.arange(size)[None, :] < lengths[:, None]
    if training and int(mask.sum()) < 2:
        return
    junk = states.masked_fill(~mask[..., None], torch.nan)
    for ours, theirs in zip(head(states, mask), head(junk, mask), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    found = head(states, mask)
    assert (found.locals[~mask] == 0).all()
    torch.testing.assert_close(found.mean_local, found.locals.sum(1) / lengths[:, None])
    for unit in (found.guide, found.fused):
        norms = unit.norm(dim=-1)
        assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()


def test_junk_beyond_the_mask_gets_no_gradient() -> None:
    head, states = ContextHead(4), torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    head(states, mask).fused.sum().backward()
    assert states.grad is not None
    assert (states.grad[0, 2] == 0).all() and (states.grad[0, 0] != 0).any()


def test_a_guide_that_the_relu_has_emptied_stays_zero_and_has_finite_gradients() -> None:
    head, states = ContextHead(4), torch.randn(3, 2, 4, requires_grad=True)
    torch.nn.init.constant_(head.guide_norm.bias, -100.0)
    found = head(states, torch.ones(3, 2, dtype=torch.bool))
    assert (found.guide == 0).all()
    (found.guide.sum() + found.fused.sum() + found.locals.sum()).backward()
    assert states.grad is not None and torch.isfinite(states.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
