"""The hinge losses of VSE++ and VSE-infinity against the original's numbers, with their gradients."""

from __future__ import annotations

import pytest
import torch
from small_models import golden

from xmatch.training.losses import all_negatives_hinge, hardest_triplet

GOLDEN = golden("vse_losses")["vse"]
FUNCTIONS = {"sum": all_negatives_hinge, "max_violation": hardest_triplet}
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_summed_loss_is_the_originals(name: str) -> None:
    image, text = (torch.tensor(GOLDEN[key], requires_grad=True) for key in ("im", "s"))
    torch.testing.assert_close(image @ text.T, torch.tensor(GOLDEN["scores"]), atol=2e-5, rtol=1e-4)
    loss = FUNCTIONS[name](text, image, GOLDEN["margin"], torch.eye(len(text), dtype=torch.bool), "sum")
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN[name]["loss"], abs=2e-5, rel=1e-4)
    torch.testing.assert_close(image.grad, torch.tensor(GOLDEN[name]["grad_im"]), **CLOSE)
    torch.testing.assert_close(text.grad, torch.tensor(GOLDEN[name]["grad_s"]), **CLOSE)


@pytest.mark.parametrize(("name", "negatives"), [("sum", 5), ("max_violation", 1)])
def test_a_collapsed_model_has_the_known_loss(name: str, negatives: int) -> None:
    rows = torch.ones(6, 4) / 2
    loss = FUNCTIONS[name](rows, rows, 0.2, torch.eye(6, dtype=torch.bool), "sum")
    assert loss.item() == pytest.approx(2 * 6 * negatives * 0.2)
