"""The dual encoder: image tower and text tower with heads and poolings into one space of unit vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError
from xmatch.models import checkpoints
from xmatch.models.heads import HeadConfig, build_head, normalise
from xmatch.models.pooling import build_pooling, pool
from xmatch.models.tokenize import tokenize
from xmatch.models.towers.image import ImageTower, ImageTowerConfig
from xmatch.models.towers.text import TextTower, TextTowerConfig

Pooling = Literal["mean", "max", "kmax", "gpo", "attention", "cls", "last"]


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Towers, heads, poolings and the shared space; the defaults are Vokenization's published model."""

    dim: int = 64
    """Width of the shared space."""
    pooling: Pooling = "cls"
    """How a sentence is made of its positions, special tokens included: `cls` the first (Maria), `last` the last real
    one (CLIP, VSE++), `gpo` the generalized pooling operator (VSE-infinity), `mean`, `max`, `kmax` (the 20 largest
    values of each dimension) or `attention`."""
    image_pooling: Pooling = "mean"
    """How an image is made of its regions or grid cells, where the image tower gives such."""
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
    logit_bias: float = 0.0
    """Starting offset of the logits; learnt by the sigmoid loss (SigLIP starts at -10)."""
    scale_features: bool = False
    """Standardise image features by their mean and deviation over the training images."""
    padding_in_batch_norm: bool = False
    """Let padded regions count in the image head's batch statistics, as VSE-infinity does."""


class DualEncoder(nn.Module, ModelHubMixin):
    """Images and texts to unit vectors whose inner product is the score of a pair.

    Shapes: B batch, K regions or cells, L tokens, C features, D the shared space.
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
        self.image_pool = build_pooling(config.image_pooling if image_tower.gives_sets else "cls", config.dim)
        self.text_pool = build_pooling(config.pooling, config.dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias)))
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
    def from_pretrained(cls, folder_or_hub_name: str | Path, **hub: Any) -> DualEncoder:
        """A saved model, in eval mode, float32, on the CPU.

        Args:
            folder_or_hub_name: a folder written by `save_pretrained`, or the name of a hub repository with its files.
            hub: `revision`, `cache_dir`, `token` and so on, for a hub repository.

        Raises:
            InputError: it is not there, or is not such a model.
        """
        folder = checkpoints.resolve(str(folder_or_hub_name), **hub)
        settings = checkpoints.read_config(folder, DualEncoderConfig)
        architectures = checkpoints.read_architectures(folder)
        image = ImageTower(checkpoints.without_weights(settings.image), architecture=architectures.image)
        tokenizer = checkpoints.read_tokenizer(folder)
        text = TextTower(settings.text, architecture=architectures.text, load_weights=False, vocab_size=len(tokenizer))
        model = cls(settings, tokenizer, image, text)
        model.load_weights(folder)
        return model.eval()

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        dtype: Literal["float32", "float16"] = "float32",
        card: str = "",
        config: Any = None,
        model_card_kwargs: Any = None,
    ) -> None:
        """Write config, weights and tokenizer into a folder that needs nothing else, on any machine.

        Args:
            folder: created if absent.
            dtype: number format of the stored weights; they are float32 again when loaded.
            card: text of the model card, README.md; none is written when empty.
            config: what `push_to_hub` hands over; the model's own is written.
            model_card_kwargs: values for the card that `push_to_hub` writes.
        """
        if model_card_kwargs is not None and not card:
            card = str(self.generate_model_card(**model_card_kwargs))
        own = replace(self.config, image=checkpoints.without_weights(self.config.image))
        architectures = checkpoints.Architectures(_architecture(self.text_tower), _architecture(self.image_tower))
        checkpoints.save(str(folder), own, self.state_dict(), self.tokenizer, architectures, dtype, card)

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Upload weights, config, tokenizer and a model card to the hub; arguments as huggingface_hub's mixin has them.

        Returns:
            The address of the commit.
        """
        hub["model_card_kwargs"] = hub.get("model_card_kwargs") or {}
        return str(super().push_to_hub(repo_id, **hub))

    def generate_model_card(self, *_: Any, **more: str) -> ModelCard:
        """A card that says what the model is and how to load it."""
        facts = "".join(f"- {name}: {value}\n" for name, value in more.items())
        return ModelCard(
            "---\nlibrary_name: vokenray\ntags: [image-text-retrieval]\n---\n# Dual encoder\n\n"
            f"Image tower `{self.config.image.name}`, text tower `{self.config.text.name or self.config.text.kind}`, "
            f"{self.config.dim} dimensions.\n{facts}\n"
            "```python\nfrom xmatch import DualEncoder\nmodel = DualEncoder.from_pretrained(FOLDER_OR_HUB_NAME)\n```\n"
        )

    def load_weights(self, folder: str) -> None:
        """Read weights written by `save_pretrained` into this model; strict, with a readable difference."""
        checkpoints.load_state(self, folder)

    def set_feature_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Standardise image features by (C,) `mean` and `std` when the configuration asks for it."""
        if self.config.scale_features:
            self.feature_mean.copy_(mean)
            self.feature_std.copy_(std.clamp_min(1e-5))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels to features before the head, (B, C) or (B, K, C)."""
        features: torch.Tensor = self.image_tower(pixels)
        return features

    def image_embeddings_from_features(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Features to unit embeddings.

        Args:
            features: (B, C), or (B, K, C) of a set of regions or cells.
            mask: (B, K) bool, true for real members; None: all are.

        Returns:
            (B, D) unit embeddings.
        """
        scaled = (features - self.feature_mean) / self.feature_std
        if scaled.ndim == 2:
            return normalise(self.image_head(scaled))
        if mask is None:
            mask = torch.ones(scaled.shape[:2], dtype=torch.bool, device=scaled.device)
        return normalise(pool(self.image_pool, self._project(scaled, mask), mask))

    def _project(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The image head on real members alone; zeros on padding."""
        if self.config.padding_in_batch_norm or bool(mask.all()):
            projected: torch.Tensor = self.image_head(features)
            return projected
        rows = self.image_head(features[mask])
        padded: torch.Tensor = rows.new_zeros((*mask.shape, rows.shape[-1])).index_put((mask,), rows)
        return padded

    def embed_images(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W) pixels, and which grid cells count, to (B, D) unit embeddings."""
        return self.image_embeddings_from_features(self.image_features(pixels), mask)

    def embed_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, L, D): a unit embedding at every position, special tokens included."""
        return self.embed_text_both(input_ids, attention_mask)[0]

    def embed_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, D) unit sentence embeddings."""
        return self.sentences_from_features(self.text_tower(input_ids, attention_mask), attention_mask)

    def tokens_from_features(self, features: torch.Tensor) -> torch.Tensor:
        """(B, L, C) features of the text tower to (B, L, D) unit embeddings of every position."""
        return normalise(self.text_head(features))

    def sentences_from_features(self, features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L, C) features of the text tower and their mask to (B, D) unit sentence embeddings."""
        return normalise(pool(self.text_pool, self.text_head(features), attention_mask.bool()))

    def embed_text_both(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (B, L, D) and sentence embeddings (B, D) from one pass of the text tower.

        A sentence is pooled from what the head gives at each position, before normalisation; with `cls` this equals
        Maria's head on the [CLS] features.
        """
        features = self.text_tower(input_ids, attention_mask).to(self.logit_scale.dtype)  # of a tower in half precision
        projected = self.text_head(features)
        return normalise(projected), normalise(pool(self.text_pool, projected, attention_mask.bool()))

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
                encoded = tokenize(self.tokenizer, texts[start : start + batch_size], self.config.text)
                ids, mask = encoded.input_ids.to(self.device), encoded.attention_mask.to(self.device)
                outputs.append(self.embed_sentences(ids, mask).float().cpu().numpy())
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

    def encode_features(
        self, features: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_] | None = None, batch_size: int = 128
    ) -> npt.NDArray[np.float32]:
        """Embeddings of ready-made image features.

        Args:
            features: (N, C) or (N, K, C), of any float dtype; may be memory-mapped.
            mask: (N, K), true for real regions; None: all are.
            batch_size: images in one forward pass.

        Returns:
            (N, D) float32 unit rows.
        """
        outputs = [np.zeros((0, self.config.dim), np.float32)]
        with _evaluating(self), torch.inference_mode():
            for start in range(0, len(features), batch_size):
                rows = torch.from_numpy(np.asarray(features[start : start + batch_size], np.float32)).to(self.device)
                real = None if mask is None else torch.from_numpy(mask[start : start + batch_size]).to(self.device)
                outputs.append(self.image_embeddings_from_features(rows, real).float().cpu().numpy())
        return np.concatenate(outputs)

    @staticmethod
    def _check_is_list(items: object) -> None:
        if isinstance(items, str | bytes):
            raise InputError(f"expected a list of texts or images, got a single {type(items).__name__}; wrap it: [x].")


def _architecture(tower: ImageTower | TextTower) -> PretrainedConfig | None:
    """The configuration of a tower that transformers made."""
    config = getattr(tower.backbone, "config", None)
    return config if isinstance(config, PretrainedConfig) else None


class _evaluating:
    """Eval mode within a block, and what it was before afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.was_training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)
