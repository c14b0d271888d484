"""The dual encoder: image tower and text tower with heads into one space of unit vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.heads import HeadConfig, build_head, normalise
from xmatch.models.towers.image import ImageTower, ImageTowerConfig
from xmatch.models.towers.text import TextTower, TextTowerConfig


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Towers, heads and the shared space; the defaults are Vokenization's published model."""

    dim: int = 64
    """Width of the shared space."""
    pooling: Literal["cls", "mean"] = "cls"
    """How a sentence is made of its positions: [CLS] (Maria), or the mean over its tokens, special tokens included."""
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    """The image tower."""
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The text tower."""
    image_head: HeadConfig = field(default_factory=HeadConfig)
    """From image features to the shared space."""
    text_head: HeadConfig = field(default_factory=HeadConfig)
    """From text features to the shared space."""
    logit_scale: float = 14.2857
    """Starting factor from scores to logits (1 / temperature); learnt by losses that use it."""
    scale_features: bool = False
    """Standardise image features by their mean and deviation over the training images."""


class DualEncoder(nn.Module):
    """Images and texts to unit vectors whose inner product is the score of a pair.

    Shapes: B batch, L tokens, C features, D the shared space.
    """

    def __init__(
        self,
        config: DualEncoderConfig,
        tokenizer: PreTrainedTokenizerBase,
        image_tower: ImageTower,
        text_tower: TextTower,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_head = build_head(image_tower.width, config.dim, config.image_head)
        self.text_head = build_head(text_tower.width, config.dim, config.text_head)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.feature_mean: torch.Tensor
        self.feature_std: torch.Tensor
        self.register_buffer("feature_mean", torch.zeros(image_tower.width))
        self.register_buffer("feature_std", torch.ones(image_tower.width))

    @classmethod
    def from_config(cls, config: DualEncoderConfig, tokenizer: PreTrainedTokenizerBase) -> DualEncoder:
        """A model with the towers' starting weights and random heads."""
        text = TextTower(config.text, vocab_size=len(tokenizer))
        return cls(config, tokenizer, ImageTower(config.image), text)

    @classmethod
    def from_pretrained(cls, folder_or_hub_name: str) -> DualEncoder:
        """A saved model, in eval mode, float32, on the CPU.

        Args:
            folder_or_hub_name: a folder written by `save_pretrained`, or the name of a hub repository with its files.

        Raises:
            InputError: it is not there, or is not such a model.
        """
        folder = checkpoints.resolve(folder_or_hub_name)
        settings = checkpoints.read_config(folder, DualEncoderConfig)
        tokenizer = checkpoints.read_tokenizer(folder)
        architecture: PretrainedConfig = checkpoints.read_architecture(folder)
        image = ImageTower(checkpoints.without_weights(settings.image))
        text = TextTower(settings.text, architecture=architecture, load_weights=False)
        model = cls(settings, tokenizer, image, text)
        model.load_weights(folder)
        return model.eval()

    def save_pretrained(self, folder: str, *, dtype: Literal["float32", "float16"] = "float32", card: str = "") -> None:
        """Write config, weights and tokenizer into a folder that needs nothing else, on any machine.

        Args:
            folder: created if absent.
            dtype: number format of the stored weights; they are float32 again when loaded.
            card: text of the model card, README.md; none is written when empty.
        """
        architecture = self.text_tower.backbone.config
        config = replace(self.config, image=checkpoints.without_weights(self.config.image))
        checkpoints.save(folder, config, self.state_dict(), self.tokenizer, architecture, dtype, card)

    def load_weights(self, folder: str) -> None:
        """Read weights written by `save_pretrained` into this model; strict, with a readable difference."""
        checkpoints.load_state(self, folder)

    def set_feature_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Standardise image features by (C,) `mean` and `std` when the configuration asks for it."""
        if self.config.scale_features:
            self.feature_mean.copy_(mean)
            self.feature_std.copy_(std.clamp_min(1e-5))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels to (B, C) features before the head."""
        features: torch.Tensor = self.image_tower(pixels)
        return features

    def image_embeddings_from_features(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C) features to (B, D) unit embeddings."""
        return normalise(self.image_head((features - self.feature_mean) / self.feature_std))

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels to (B, D) unit embeddings."""
        return self.image_embeddings_from_features(self.image_features(pixels))

    def embed_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, L, D): a unit embedding at every position, special tokens included."""
        return self.embed_text_both(input_ids, attention_mask)[0]

    def embed_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, D) unit sentence embeddings."""
        return self.embed_text_both(input_ids, attention_mask)[1]

    def embed_text_both(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (B, L, D) and sentence embeddings (B, D) from one pass of the text tower.

        A sentence is pooled from what the head gives at each position, before normalisation: with `cls`, position 0,
        which equals Maria's head on the [CLS] features; with `mean`, the mean over real positions.
        """
        projected = self.text_head(self.text_tower(input_ids, attention_mask))
        if self.config.pooling == "cls":
            return normalise(projected), normalise(projected[:, 0])
        weights = attention_mask.to(projected.dtype)[..., None]
        pooled = (projected * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        return normalise(projected), normalise(pooled)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.logit_scale.device

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> npt.NDArray[np.float32]:
        """Sentence embeddings of texts.

        Args:
            texts: N texts; longer ones are cut at `config.text.max_len` tokens.
            batch_size: texts in one forward pass.

        Returns:
            (N, D) float32 unit rows.
        """
        self._check_is_list(texts)
        outputs = [np.zeros((0, self.config.dim), np.float32)]
        with _evaluating(self), torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                encoded = self.tokenizer(
                    list(texts[start : start + batch_size]),
                    padding=True,
                    truncation=True,
                    max_length=self.config.text.max_len,
                    return_tensors="pt",
                ).to(self.device)
                outputs.append(
                    self.embed_sentences(encoded["input_ids"], encoded["attention_mask"]).float().cpu().numpy()
                )
        return np.concatenate(outputs)

    def encode_images(
        self, images: Sequence[str | bytes | Image.Image], batch_size: int = 32
    ) -> npt.NDArray[np.float32]:
        """Embeddings of images.

        Args:
            images: N paths, encoded images, or PIL images.
            batch_size: images in one forward pass.

        Returns:
            (N, D) float32 unit rows.

        Raises:
            UnreadableImage: one cannot be decoded; names it.
        """
        self._check_is_list(images)
        transform = self.image_tower.transform(train=False)
        outputs = [np.zeros((0, self.config.dim), np.float32)]
        with _evaluating(self), torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                decoded = [i.convert("RGB") if isinstance(i, Image.Image) else decode_rgb(i) for i in batch]
                pixels = torch.stack([transform(image) for image in decoded]).to(self.device)
                outputs.append(self.embed_images(pixels).float().cpu().numpy())
        return np.concatenate(outputs)

    @staticmethod
    def _check_is_list(items: object) -> None:
        if isinstance(items, str | bytes):
            raise InputError(f"expected a list of texts or images, got a single {type(items).__name__}; wrap it: [x].")


class _evaluating:
    """Eval mode within a block, and what it was before afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.was_training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)
