"""Which recipe a training is run by."""

from __future__ import annotations

from alignment.mvptr.pair_recipe import MvptrPairRecipe
from alignment.mvptr.recipe_config import MATCHING, MvptrTrainConfig
from alignment.mvptr.task_recipe import MvptrTaskRecipe
from alignment.mvptr.weak_recipe import MvptrWeakRecipe


def recipe_class(config: MvptrTrainConfig) -> type[MvptrPairRecipe] | type[MvptrTaskRecipe]:
    """The recipe of a task and of what it is learnt from."""
    if config.task in MATCHING:
        return MvptrPairRecipe
    return MvptrWeakRecipe if config.is_weak else MvptrTaskRecipe
