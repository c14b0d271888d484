"""How a dual encoder learns with SelfAlign: its own matching loss, and the alignment of its parts on the side."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.selfalign.concept import Prototypes
from alignment.selfalign.config import SelfAlignConfig
from alignment.selfalign.rows import Side, aligned_losses, aligned_rows
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.objectives import same_rows
from xmatch.training.recipe import ParameterGroup, PartedLoss, Rows, SampleKey

PROTOTYPES = "prototypes"
"""Name of the prototypes among what only training needs."""


@dataclass(frozen=True, kw_only=True)
class SelfAlignRecipeConfig:
    """What is trained, and on what."""

    matching: RecipeConfig
    """Model, matching and side losses, augmentation and groups."""
    selfalign: SelfAlignConfig = field(default_factory=SelfAlignConfig)


def check_model(model: DualEncoder, config: SelfAlignConfig) -> None:
    """Refuse models that have not the parts which are to be aligned.

    Raises:
        InputError: images are one vector each, or the context loss is on and the model has no context head.
    """
    if not model.image_tower.gives_sets:
        raise InputError(
            "SelfAlign aligns words with regions, grid cells or patches, but this model's image tower gives one vector "
            "an image: set model.image.output=grid."
        )
    if config.context and not model.config.context_head:
        raise InputError(
            "the context loss needs the model's context head: set model.context_head=true, or selfalign.context=0."
        )


class SelfAlignRecipe:
    """Trains any `DualEncoder` of sets with SelfAlign's losses; a recipe of `xmatch.training.recipe.Recipe`.

    Args:
        config: model and losses.
        tokenizer: the text tower's.
        samples: captions and images.
    """

    def __init__(self, config: SelfAlignRecipeConfig, tokenizer: PreTrainedTokenizerBase, samples: RecipeData) -> None:
        self.losses = config.selfalign
        self.matching = DualEncoderRecipe(config.matching, tokenizer, samples)
        if self.matching.objective.level == "token":
            raise InputError("SelfAlign needs a loss of whole sentences, such as loss.name=hardest_triplet.")

    @property
    def num_samples(self) -> int:
        """Training captions."""
        return self.matching.num_samples

    @property
    def gathers(self) -> bool:
        """Whether negatives and assignments span the rows of all workers."""
        return self.matching.gathers

    def build_model(self) -> nn.Module:
        """The dual encoder, with prototypes that no saved model has.

        Raises:
            InputError: the model has not the parts that the losses in use align.
        """
        model = self.matching.build_model()
        assert isinstance(model, DualEncoder)
        check_model(model, self.losses)
        if self.losses.concept:
            model.training_only[PROTOTYPES] = Prototypes(self.losses.prototypes, model.config.dim)
        return model

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters by decay, rate and time of thawing."""
        return self.matching.parameter_groups(model)

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Captions and images at `indices`, of shape (B,); a function of (key, indices), row by row."""
        return self.matching.batch(indices, key)

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """Embeddings (B, E) or (B, V, E), and the parts that are aligned."""
        assert isinstance(model, DualEncoder)
        image, text = self.matching.parts(model, batch)
        prototypes = model.training_only[PROTOTYPES]() if self.losses.concept else None
        aligned = aligned_rows(
            Side(image.projected, batch["image_mask"].bool(), image.context, image.mask),
            Side(text.words, batch["text_mask"].bool(), text.context, text.mask),
            prototypes,
            self.losses,
        )
        return {**self.matching.rows(model, batch, image, text), **aligned}

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> PartedLoss:
        """Matching, side losses and the two of SelfAlign, weighted, over all rows given; and each of them."""
        matching = self.matching.loss(model, embeddings, epoch)
        if not isinstance(matching, PartedLoss):
            matching = PartedLoss(matching, {"matching": matching})
        same_image = same_rows(embeddings["image_row"], self.matching.config.loss)
        values = aligned_losses(embeddings, same_image, self.losses)
        weighted = [self.losses.weights[name] * value for name, value in values.items()]
        return PartedLoss(torch.stack([matching.total, *weighted]).sum(), {**matching.parts, **values})

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall in both directions and rsum on the validation split."""
        return self.matching.evaluate(model)

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `DualEncoder.from_pretrained` loads, with the prototypes beside the model."""
        self.matching.save_model(model, folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`, the prototypes included."""
        self.matching.load_model(model, folder)
