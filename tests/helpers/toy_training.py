"""A program that trains the toy recipe: toy_training.py OUTPUT [FLAG [STOP_AFTER_EPOCHS]]."""

from __future__ import annotations

import sys
from functools import partial

from toy_recipe import ToyRecipe

from raydeploy.connect import RayConfig, connect
from raydeploy.training import TrainerConfig, fit
from xmatch.training.optim import OptimConfig


def main(output: str, flag: str = "", stop: str = "0") -> None:
    config = TrainerConfig(epochs=3, batch_size=4, stop_after_epochs=int(stop) or None)
    recipe = partial(ToyRecipe, flag=flag, die_in=1, hangs=True) if flag else ToyRecipe
    with connect(RayConfig(num_cpus=2, object_store_mb=100)):
        fit(recipe, config, OptimConfig(lr=0.02, schedule="linear", warmup_share=0.1), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
