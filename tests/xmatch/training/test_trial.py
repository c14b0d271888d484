from __future__ import annotations

import torch
from toy_recipe import ToyRecipe

from xmatch.training.optim import OptimConfig
from xmatch.training.step import StepConfig
from xmatch.training.trial import try_steps


def test_a_trial_counts_samples_and_weights_and_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    trial = try_steps(ToyRecipe, StepConfig(), OptimConfig(), batch_size=4, threads=1, seconds=0.05)
    assert trial.samples >= 4
    assert 0 < trial.seconds < 60
    assert trial.load_seconds > 0
    total, learning = trial.weights
    assert total >= learning > 0
    assert torch.get_num_threads() == threads


def test_a_batch_larger_than_the_data_is_cut_to_it() -> None:
    recipe = ToyRecipe()
    trial = try_steps(lambda: recipe, StepConfig(), OptimConfig(), batch_size=10**6, threads=1, seconds=0.0)
    assert trial.samples == recipe.num_samples
