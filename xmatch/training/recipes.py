"""Everything that can be trained here, by name."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.recipe import Recipe
from xmatch.training.text_pairs_recipe import TextPairsRecipe

RECIPES: dict[str, Callable[[RecipeConfig, PreTrainedTokenizerBase, RecipeData], Recipe]] = {
    "dual_encoder": DualEncoderRecipe,
    "text_pairs": TextPairsRecipe,
}
