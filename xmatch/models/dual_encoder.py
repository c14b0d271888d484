"""The dual encoder: image tower and text tower with heads and poolings into one space of unit vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from xmatch.models import checkpoints, encoding
from xmatch.models.context.build import SetContext
from xmatch.models.context.positions import grid_positions
from xmatch.models.context_head import ContextHead
from xmatch.models.dual_encoder_config import DualEncoderConfig
from xmatch.models.heads import build_head, normalise
from xmatch.models.members import Masks, masks_of
from xmatch.models.parts import BLOCKS, ImageParts, TextParts, final_images, final_texts
from xmatch.models.pooling import build_pooling, pool
from xmatch.models.set_poolings import ViewsPooling, build_image_pooling
from xmatch.models.towers.image import ImageTower
from xmatch.models.towers.text import TextTower

__all__ = ["DualEncoder", "DualEncoderConfig"]

COUNT_PADDING = ("mean", "views")
"""Poolings in which padding takes part under `legacy_padding`."""


class DualEncoder(nn.Module, ModelHubMixin):
    """Images and texts to vectors whose inner product is the score of a pair; with several views, the greatest is.

    The vectors are of unit length, but with a context head, whose blocks stand behind a unit vector.

    Shapes: B batch, K regions or cells, L tokens, C features, D the shared space, E = `embedding_width`, V views.
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
        config.require_sets(has_sets=image_tower.gives_sets)
        self.image_pool = build_image_pooling(
            config.image_pooling if image_tower.gives_sets else "cls",
            config.dim,
            views=config.views,
            batch_norm=config.pooling_batch_norm,
        )
        self.text_pool = build_pooling(config.pooling, config.dim)
        self.image_context, self.text_context = (
            SetContext(config.dim, context, across_members=config.legacy_norm_axis)
            for context in (config.image_context, config.text_context)
        )
        self.image_context_head = ContextHead(config.dim) if config.context_head else None
        self.text_context_head = ContextHead(config.dim) if config.context_head else None
        self.training_only = nn.ModuleDict()
        """What a recipe adds for its losses; never part of the saved model."""
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
        checkpoints.save(str(folder), own, checkpoints.own_state(self), self.tokenizer, architectures, dtype, card)

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
        """Standardise image features by `mean` and `std` of shape (C,) when the configuration asks for it."""
        if self.config.scale_features:
            self.feature_mean.copy_(mean)
            self.feature_std.copy_(std.clamp_min(1e-5))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels to features before the head, (B, C) or (B, K, C)."""
        features: torch.Tensor = self.image_tower(pixels)
        return features

    @property
    def embedding_width(self) -> int:
        """E, numbers of a final vector: D, or with a context head three blocks of D."""
        return self.config.dim * (BLOCKS if self.config.context_head else 1)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image's embedding: (E,), or (V, E) of one with several views."""
        is_viewed = isinstance(self.image_pool, ViewsPooling)
        return (self.config.views, self.embedding_width) if is_viewed else (self.embedding_width,)

    @property
    def needs_positions(self) -> bool:
        """Whether the image side has to be told where regions lie."""
        return self.config.image_context.positions

    def image_embeddings_from_features(
        self, features: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features to embeddings.

        Args:
            features: (B, C), or (B, K, C) of a set of regions or cells.
            mask: (B, K) bool, true for real members; None: all are.
            positions: (B, K, 6), `xmatch.data.region_places.position_code`, where `needs_positions`.

        Returns:
            (B, E) embeddings, or (B, V, E).

        Raises:
            InputError: positions are needed and not given, or a set has no member.
        """
        return self.image_parts(features, mask, positions).embeddings

    def image_parts(
        self, features: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> ImageParts:
        """`image_embeddings_from_features`, (B, C) or (B, K, C), with what came before; one vector is a set of one."""
        scaled = (features - self.feature_mean) / self.feature_std
        if mask is None or scaled.ndim == 2:
            size = (len(scaled), scaled.shape[1] if scaled.ndim == 3 else 1)
            mask = torch.ones(size, dtype=torch.bool, device=scaled.device)
        masks = masks_of(mask, padding_counts=self.config.legacy_padding)
        projected = self._project(scaled, mask) if scaled.ndim == 3 else self.image_head(scaled)[:, None]
        projected = self.image_context.enter(projected, masks)
        states = self.image_context.reason(projected, masks, positions)
        members = self.image_context.leave(states, masks)
        counted = self._pooled_mask(masks, self.config.image_pooling)
        scores = None
        if isinstance(self.image_pool, ViewsPooling):
            scores = self.image_pool.scores(members, counted)
            host = self.image_pool.summarise(members, scores, counted)
        else:
            host = pool(self.image_pool, members, counted)
        context = None if self.image_context_head is None else self.image_context_head(states, masks.counted)
        final = final_images(host, context)
        return ImageParts(projected, states, scores, context, final, masks.counted, members)

    def _pooled_mask(self, masks: Masks, pooling: str) -> torch.Tensor:
        """The members (B, K) that a pooling is given."""
        return masks.counted if pooling in COUNT_PADDING else masks.real

    def _project(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to (B, K, D): the image head on real members alone; zeros on padding."""
        has_padding = self.config.padding_in_batch_norm or self.config.legacy_padding
        if has_padding or bool(mask.all()):
            projected: torch.Tensor = self.image_head(features)
            return projected
        rows = self.image_head(features[mask])
        padded: torch.Tensor = rows.new_zeros((*mask.shape, rows.shape[-1])).index_put((mask,), rows)
        return padded

    def embed_images(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W) pixels, and which grid cells count, to (B, E) or (B, V, E) embeddings."""
        return self.pixel_parts(pixels, mask).embeddings

    def pixel_parts(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> ImageParts:
        """`image_parts` of (B, 3, H, W) pixels; where a cell lies follows from the grid."""
        features = self.image_features(pixels)
        return self.image_parts(features, mask, self.grid_positions(features) if self.needs_positions else None)

    def grid_positions(self, features: torch.Tensor) -> torch.Tensor:
        """(B, K, 6) positions of the cells that features (B, K, C) of the image tower are of."""
        cells = torch.from_numpy(grid_positions(features.shape[1])).to(features.device)
        return cells.expand(len(features), -1, -1)

    def embed_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, L, D): a unit embedding at every position, special tokens included."""
        return self.embed_text_both(input_ids, attention_mask)[0]

    def embed_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and mask to (B, E) sentence embeddings."""
        return self.text_parts(input_ids, attention_mask).embeddings

    def text_parts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextParts:
        """(B, L) ids and mask to sentence embeddings (B, E), with what came before."""
        return self.text_parts_from_features(self.text_tower(input_ids, attention_mask), attention_mask)

    def text_parts_from_features(self, features: torch.Tensor, attention_mask: torch.Tensor) -> TextParts:
        """(B, L, C) features of the text tower and their mask to sentence embeddings, with what came before."""
        return self._parts_of_words(self.text_head(features), attention_mask)

    def _parts_of_words(self, projected: torch.Tensor, attention_mask: torch.Tensor) -> TextParts:
        """What the text head gives, (B, L, D), and the mask (B, L) to sentence embeddings, with what came before."""
        masks = masks_of(attention_mask, padding_counts=self.config.legacy_padding)
        words = self.text_context.enter(projected, masks)
        states = self.text_context.reason(words, masks)
        host = pool(
            self.text_pool, self.text_context.leave(states, masks), self._pooled_mask(masks, self.config.pooling)
        )
        context = None if self.text_context_head is None else self.text_context_head(states, masks.counted)
        return TextParts(words, states, context, final_texts(host, context), masks.counted)

    def tokens_from_features(self, features: torch.Tensor) -> torch.Tensor:
        """(B, L, C) features of the text tower to (B, L, D) unit embeddings of every position."""
        return normalise(self.text_head(features))

    def sentences_from_features(self, features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L, C) features of the text tower and their mask to (B, E) sentence embeddings."""
        return self.text_parts_from_features(features, attention_mask).embeddings

    def embed_text_both(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (B, L, D) and sentence embeddings (B, E) from one pass of the text tower.

        Tokens are what the head gives at each position, brought to unit length; a sentence is pooled from it before
        normalisation. With `cls` this equals Maria's head on the [CLS] features.
        """
        features = self.text_tower(input_ids, attention_mask).to(self.logit_scale.dtype)  # of a tower in half precision
        projected = self.text_head(features)
        return normalise(projected), self._parts_of_words(projected, attention_mask).embeddings

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
            (N, E) float32.
        """
        return encoding.encode_texts(self, texts, batch_size)

    def encode_images(
        self, images: Sequence[str | bytes | Image.Image], batch_size: int = 32
    ) -> npt.NDArray[np.float32]:
        """Embeddings of images.

        Args:
            images: N paths, encoded images, or PIL images.
            batch_size: images in one forward pass.

        Returns:
            (N, E) float32, or (N, V, E) of a model with views.

        Raises:
            UnreadableImage: one cannot be decoded; names it.
        """
        return encoding.encode_images(self, images, batch_size)

    def encode_features(
        self,
        features: npt.NDArray[np.floating],
        mask: npt.NDArray[np.bool_] | None = None,
        batch_size: int = 128,
        positions: npt.NDArray[np.floating] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings of ready-made image features.

        Args:
            features: (N, C) or (N, K, C), of any float dtype; may be memory-mapped.
            mask: (N, K), true for real regions; None: all are.
            batch_size: images in one forward pass.
            positions: (N, K, 6), where regions lie, for a model that `needs_positions`.

        Returns:
            (N, E) float32, or (N, V, E) of a model with views.

        Raises:
            InputError: positions are needed and not given.
        """
        return encoding.encode_features(self, features, mask, positions, batch_size)


def _architecture(tower: ImageTower | TextTower) -> PretrainedConfig | None:
    """The configuration of a tower that transformers made."""
    config = getattr(tower.backbone, "config", None)
    return config if isinstance(config, PretrainedConfig) else None
