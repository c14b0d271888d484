"""How a dual encoder is trained: samples in, loss, validation recall."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from xmatch.data.augment import SizeAugmentConfig
from xmatch.data.feature_sets import FeatureSets
from xmatch.data.local_cache import CacheConfig, LocalCache
from xmatch.errors import InputError
from xmatch.evaluation.ranks import caption_ranks
from xmatch.evaluation.report import retrieval_figures
from xmatch.evaluation.view_similarities import across, view_rows
from xmatch.models.context.config import ContextConfig
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.models.parts import ImageParts, TextParts
from xmatch.training.caption_inputs import CaptionBatch, CaptionInputs, TextFeatureInputs, TokenInputs
from xmatch.training.initial_weights import load_initial, prepare_gradients
from xmatch.training.objectives import LossConfig, Scored, objective, same_rows
from xmatch.training.optim import GroupConfig, parameter_groups
from xmatch.training.recipe import ParameterGroup, PartedLoss, Rows, SampleKey
from xmatch.training.sample_inputs import FeatureInputs, ImageBatch, ImageInputs, PixelInputs
from xmatch.training.samples import Samples, read_samples
from xmatch.training.side_losses import SideLossConfig, add_modules, side_losses, side_rows
from xmatch.training.training_only import load_training_only, save_training_only


@dataclass(frozen=True, kw_only=True)
class RecipeData:
    """Where a recipe's samples lie: folders or URIs that every worker can read."""

    train: str
    """Samples written by `write_samples`."""
    valid: str
    """The same, of the split that chooses the best epoch."""
    features: str = ""
    """Bank of image features by image id; empty: images are decoded, or the samples name their regions."""
    text_features: str = ""
    """Bank of text features by caption id; empty: captions are tokenized and run through the text tower."""
    init_from: str = ""
    """Saved model whose weights are the start, where names and shapes agree; empty: none."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of what lies at URIs."""


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Model, loss, augmentation and groups of a recipe."""

    model: DualEncoderConfig
    loss: LossConfig = field(default_factory=LossConfig)
    side_losses: SideLossConfig = field(default_factory=SideLossConfig)
    augment: SizeAugmentConfig = field(default_factory=SizeAugmentConfig)
    groups: GroupConfig = field(default_factory=GroupConfig)
    gradient_checkpointing: bool = False
    crops: bool = True
    """Cut and mirror decoded training images at random; false: see them as an evaluation does."""


class DualEncoderRecipe:
    """Trains a `DualEncoder` on captioned images; a recipe in the sense of `xmatch.training.recipe.Recipe`.

    Args:
        config: model, loss, augmentation.
        tokenizer: the text tower's.
        data: the samples.

    Raises:
        InputError: the losses do not go with the model or the data.
    """

    def __init__(self, config: RecipeConfig, tokenizer: PreTrainedTokenizerBase, data: RecipeData) -> None:
        _check_losses(config, data)
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.objective = objective(config.loss.name)
        self.cache = LocalCache(data.cache)
        self.train: Samples = read_samples(data.train, self.cache.hold)
        self.valid: Samples = read_samples(data.valid, self.cache.hold)
        self._inputs: dict[str, ImageInputs] = {}
        self._captions = {"train": self._captions_of(self.train), "valid": self._captions_of(self.valid)}

    @property
    def num_samples(self) -> int:
        """Training captions."""
        return len(self.train.captions)

    @property
    def gathers(self) -> bool:
        """Whether negatives come from all workers."""
        return self.config.loss.negatives == "global"

    def build_model(self) -> nn.Module:
        """The dual encoder; weights not loaded from anywhere come from torch's current seed."""
        model = DualEncoder.from_config(self.config.model, self.tokenizer)
        load_initial(model, self.data.init_from)
        self.open_inputs(model)
        train = self.images
        if isinstance(train, FeatureInputs) and self.config.model.scale_features:
            mean, std = train.sets.statistics(train.views[:, 0])
            model.set_feature_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
        add_modules(model, self.config.side_losses)
        prepare_gradients(model, self.objective, checkpointing=self.config.gradient_checkpointing)
        return model.train()

    def open_inputs(self, model: DualEncoder) -> None:
        """Open the images of both splits as a model's image tower takes them."""
        self._inputs = {"train": self._inputs_of(model, self.train), "valid": self._inputs_of(model, self.valid)}

    @property
    def images(self) -> ImageInputs:
        """The training images, once a model was built or inputs were opened for one."""
        return self._inputs["train"]

    def _inputs_of(self, model: DualEncoder, samples: Samples) -> ImageInputs:
        names = samples.images.column("image_id").to_pylist()
        is_set = model.image_tower.gives_sets
        if samples.regions is not None:
            sets = FeatureSets.from_array(samples.regions, names, self.data.train, samples.boxes, samples.sizes)
            return FeatureInputs(sets, names, is_set, self.config.augment, _places_for(model))
        if self.data.features:
            sets = FeatureSets.from_bank(self.data.features, self.cache.hold)
            return FeatureInputs(sets, names, is_set, self.config.augment, _places_for(model))
        transform = model.image_tower.transform(train=self.config.crops)
        uris = samples.images.column("uri").to_pylist()
        return PixelInputs(uris, transform, model.image_tower.cells, self.config.augment, self.cache)

    def _captions_of(self, samples: Samples) -> CaptionInputs:
        if self.data.text_features:
            names = samples.captions.column("caption_id").to_pylist()
            return TextFeatureInputs(FeatureSets.from_bank(self.data.text_features, self.cache.hold), names)
        texts = samples.captions.column("caption").to_pylist()
        return TokenInputs(texts, self.tokenizer, self.config.model.text, self.config.augment)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters by decay, rate and time of thawing."""
        return parameter_groups(model, self.config.groups)

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Captions and their images at `indices`, augmented; a function of (key, indices).

        Args:
            indices: of captions, int64 of shape (B,).
            key: where the batch stands in the run.

        Returns:
            text, ids (B, L) or features (B, L, C), and text_mask (B, L); image, pixels (B, 3, H, W) or features
            (B, K, C), and image_mask (B, K); image_row (B,) int64; image_positions (B, K, 6) where they are needed.
        """
        rows = self.train.image_rows[indices]
        draws = [np.random.default_rng((key.seed, key.epoch, int(index))) for index in indices]
        image = self._inputs["train"].batch(rows, draws)
        text = self._captions["train"].batch(indices, draws)
        found = {
            "text": text.values,
            "text_mask": text.mask,
            "image": image.values,
            "image_mask": image.mask,
            "image_row": torch.from_numpy(rows.copy()),
        }
        return found if image.positions is None else {**found, "image_positions": image.positions}

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """Embeddings, text (B, E) or (B, L, D) and image (B, E) or (B, V, E), and what else the loss needs."""
        assert isinstance(model, DualEncoder)
        if self.objective.level == "sentence":
            return self.rows(model, batch, *self.parts(model, batch))
        captions = CaptionBatch(batch["text"], batch["text_mask"])
        text, image = self._captions["train"].tokens(model, captions), self._image_parts(model, batch)
        rows = {"text": text.float(), "image": image.embeddings.float(), "image_row": batch["image_row"]}
        return {**rows, "mask": batch["text_mask"]}

    def parts(self, model: DualEncoder, batch: Rows) -> tuple[ImageParts, TextParts]:
        """Both sides of each sample with all that came before the embeddings, for sentence-level losses."""
        captions = CaptionBatch(batch["text"], batch["text_mask"])
        text = self._captions["train"].parts(model, captions)
        return self._image_parts(model, batch), text

    def _image_parts(self, model: DualEncoder, batch: Rows) -> ImageParts:
        images = ImageBatch(batch["image"], batch["image_mask"], batch.get("image_positions"))
        return self._inputs["train"].parts(model, images)

    def rows(self, model: DualEncoder, batch: Rows, image: ImageParts, text: TextParts) -> dict[str, torch.Tensor]:
        """What `loss` needs of each sample, from its parts: text (B, E), image (B, E) or (B, V, E), the rest (B,)."""
        return {
            "text": text.embeddings.float(),
            "image": image.embeddings.float(),
            "image_row": batch["image_row"],
            **side_rows(model, batch, image, self.config.side_losses),
        }

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor | PartedLoss:
        """The loss of all rows (B, ...) given; where side losses are in use, weighted with them, and each of them."""
        matching = self._matching(model, embeddings, epoch)
        weights = self.config.side_losses.weights
        if not weights:
            return matching
        found = side_losses(embeddings, self.config.side_losses, self.config.loss.reduction)
        total = torch.stack([matching, *(weights[name] * value for name, value in found.items())]).sum()
        return PartedLoss(total, {"matching": matching, **found})

    def _matching(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor:
        """The objective's loss of all rows (B, ...), a scalar."""
        assert isinstance(model, DualEncoder)
        text = embeddings["text"]
        scored = Scored(
            text=text,
            image=embeddings["image"],
            mask=embeddings.get("mask", torch.ones(text.shape[:-1], device=text.device)),
            same_image=same_rows(embeddings["image_row"], self.config.loss),
            logit_scale=model.logit_scale.exp().clamp_max(100.0),
            logit_bias=model.logit_bias,
            epoch=epoch,
        )
        return self.objective.loss(scored, self.config.loss)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall in both directions and rsum on the validation split, with sentence embeddings."""
        assert isinstance(model, DualEncoder)
        texts = self._captions["valid"].encode_all(model)
        images = self._inputs["valid"].encode_all(model)
        scores = across(view_rows(images) if images.ndim == 3 else images, texts)
        image_to_text, text_to_image = caption_ranks(scores, self.valid.image_rows)
        return retrieval_figures(image_to_text.ranks, text_to_image.ranks)

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `DualEncoder.from_pretrained` loads, with training-only weights in a file of their own."""
        assert isinstance(model, DualEncoder)
        model.save_pretrained(folder)
        save_training_only(model, folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`."""
        assert isinstance(model, DualEncoder)
        model.load_weights(folder)
        load_training_only(model, folder)


def _places_for(model: DualEncoder) -> Literal["none", "boxes", "grid"]:
    """How a model that has to be told where the members of an image lie gets to know."""
    if not model.needs_positions:
        return "none"
    return "boxes" if model.image_tower.config.kind == "regions" else "grid"


def _check_losses(config: RecipeConfig, data: RecipeData) -> None:
    """Refuse losses that do not go with the model or the data.

    Raises:
        InputError: says which.
    """
    model, is_token = config.model, objective(config.loss.name).level == "token"
    if is_token and (model.text_context != ContextConfig() or model.context_head or model.image_pooling == "views"):
        raise InputError(
            f"loss.name={config.loss.name} compares single tokens with one vector an image; a model with text_context, "
            "context_head or views needs a loss of whole sentences, such as hardest_triplet."
        )
    if is_token and config.side_losses.weights:
        raise InputError(f"side_losses go with a loss of whole sentences, not with loss.name={config.loss.name}.")
    if config.side_losses.caption_generation and (config.augment.words or data.text_features):
        raise InputError(
            "side_losses.caption_generation learns to write the captions as they are: set size_augment.words=0 and "
            "leave text_features out."
        )
