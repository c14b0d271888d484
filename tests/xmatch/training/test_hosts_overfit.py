"""Each host learns 64 pairs by heart: every image finds its caption and every caption its image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from host_recipes import HARDEST, camera_config, recipe_in, vsrn_config

from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.training.optim import OptimConfig, build_optimizer, set_rates
from xmatch.training.recipe import SampleKey
from xmatch.training.side_losses import SideLossConfig
from xmatch.training.step import StepConfig, Stepper

PAIRS, EPOCHS, WARM, BATCH = 64, 150, 30, 32
OPTIM = OptimConfig(name="adam", lr=5e-3, schedule="steps", milestones=(110, 135))
HOSTS = {
    "vsrn_flickr30k": (
        vsrn_config(32, pooling_batch_norm=True),
        SideLossConfig(caption_generation=0.1, caption_hidden=16, caption_word_dim=8),
    ),
    "vsrn_coco": (vsrn_config(32), SideLossConfig(caption_generation=0.1, caption_hidden=16, caption_word_dim=8)),
    "camera": (camera_config(32), SideLossConfig(diversity=0.01)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_a_host_learns_64_pairs_by_heart(name: str, tmp_path: Path) -> None:
    config, side = HOSTS[name]
    losses, figures = overfitted(config, side, tmp_path)
    assert losses[WARM - 1] < 0.5 * losses[0]  # all negatives at first, then the hardest
    assert np.mean(losses[-3:]) < 0.5 * losses[WARM]
    assert (figures["i2t_recall_at_1"], figures["t2i_recall_at_1"]) == (100.0, 100.0)


def overfitted(config: DualEncoderConfig, side: SideLossConfig, folder: Path) -> tuple[list[float], dict[str, float]]:
    """Mean losses of the epochs, and the figures on the pairs at the end."""
    recipe = recipe_in(folder, config, side, images=PAIRS, loss=replace(HARDEST, warmup_epochs=WARM))
    torch.manual_seed(0)
    model = recipe.build_model()
    optimizer, stepper = build_optimizer(recipe.parameter_groups(model), OPTIM), Stepper(recipe, model, StepConfig())
    means = []
    for epoch in range(EPOCHS):
        set_rates(optimizer, OPTIM, epoch, 1, EPOCHS)
        order, found = np.random.default_rng(epoch).permutation(PAIRS), []
        for start in range(0, PAIRS, BATCH):
            indices = order[start : start + BATCH]
            optimizer.zero_grad()
            outcome = stepper.backward(
                recipe.batch(indices, SampleKey(0, epoch)),
                torch.ones(len(indices), dtype=torch.bool),
                samples=torch.from_numpy(indices),
                epoch=epoch,
                seed=epoch,
            )
            assert set(outcome.parts) == {"matching", *side.weights}
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            found.append(float(outcome.loss))
        means.append(float(np.mean(found)))
    return means, recipe.evaluate(model)
