"""MVPTR: a text and a vision encoder, and a cross encoder over both (Li et al. 2022, arXiv 2201.12596).

Shapes: B pairs, S + Q text places (tokens, then phrases), T tag places, R regions, C numbers a region, H the width,
L places of the cross encoder. Masks are 1 (or true) where there is something.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from alignment.mvptr.config import MvptrConfig
from xmatch.errors import InputError


class Inputs(NamedTuple):
    """A batch of pairs, under the original's names; all integers are int64.

    input_ids_a, attention_mask_a, token_type_ids_a: (B, S + Q), [CLS] tokens phrases [SEP] padding.
    input_ids_b, token_type_ids_b: (B, T), [CLS] tags [SEP] padding.
    attention_mask_b: (B, T + R), of tags and regions.
    img_feats: (B, R, C) float32.
    """

    input_ids_a: torch.Tensor
    attention_mask_a: torch.Tensor
    token_type_ids_a: torch.Tensor
    input_ids_b: torch.Tensor
    attention_mask_b: torch.Tensor
    token_type_ids_b: torch.Tensor
    img_feats: torch.Tensor

    def to(self, device: torch.device | str) -> Inputs:
        """The same batch on a device."""
        return Inputs(*(part.to(device) for part in self))

    def take(self, rows: torch.Tensor | slice) -> Inputs:
        """Some of the pairs, every part (B, ...) to (N, ...)."""
        return Inputs(*(part[rows] for part in self))


class Encoded(NamedTuple):
    """One side of a batch after its own encoder, all that the cross encoder needs of it.

    states: (B, S + Q, H) of texts, (B, T + R, H) of images. mask: (B, S + Q) or (B, T + R), bool.
    vector: (B, H), the projected [CLS] at unit length, for the coarse search.
    """

    states: torch.Tensor
    mask: torch.Tensor
    vector: torch.Tensor

    def take(self, rows: torch.Tensor) -> Encoded:
        """The samples at `rows`, of shape (N,), in that order, repeated where they repeat."""
        return Encoded(*(part[rows] for part in self))


class Dual(NamedTuple):
    """Both sides of a batch."""

    text: Encoded
    image: Encoded


class Cross(NamedTuple):
    """What the cross encoder makes of pairs.

    sequence: (B, L, H), text places first. pooled: (B, H). mask: (B, L) bool.
    layers: (B, L, H) after each layer; the last is `sequence`.
    """

    sequence: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor
    layers: tuple[torch.Tensor, ...]


class MvptrModel(nn.Module):
    """The three encoders over one embedding table.

    Each side is encoded alone, so that retrieval encodes every text and image once and runs pairs through the cross
    encoder only. Weights come from torch's current seed.

    Args:
        config: sizes, lengths and where the cross encoder reads.
    """

    def __init__(self, config: MvptrConfig) -> None:
        super().__init__()
        self.config = config
        bert, width = config.bert(), config.hidden_size
        self.embeddings = BertEmbeddings(bert)
        self.region_embedding = nn.Linear(config.region_width, width)
        self.region_norm = nn.LayerNorm(width, eps=bert.layer_norm_eps) if config.region_norm else nn.Identity()
        self.region_dropout = nn.Dropout(config.dropout)
        self.text_encoder = BertEncoder(bert)
        self.vision_encoder = BertEncoder(bert)
        self.cross_encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        self.text_projection = nn.Parameter(torch.empty(width, width))
        self.vision_projection = nn.Parameter(torch.empty(width, width))
        self.apply(self.initialise)
        for projection in (self.text_projection, self.vision_projection):
            nn.init.normal_(projection, std=width**-0.5)

    def initialise(self, module: nn.Module) -> None:
        """Starting weights of one module as BERT has them; LayerNorm keeps torch's."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())

    @property
    def word_rows(self) -> torch.Tensor:
        """(W, H): the rows of the shared table that are words, through which gradients flow."""
        table: torch.Tensor = self.embeddings.word_embeddings.weight
        return table[: self.config.only_word_size]

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_types: torch.Tensor) -> Encoded:
        """Encode tokens and phrases.

        Args:
            input_ids: (B, S + Q) int64.
            attention_mask: (B, S + Q).
            token_types: (B, S + Q) int64.

        Raises:
            InputError: lengths or ids are not those of the configuration.
        """
        wanted = self.config.lengths.text_stream
        for name, given in (("ids", input_ids), ("mask", attention_mask), ("token types", token_types)):
            _require_length(f"text {name}", given, wanted, "lengths.text + lengths.phrases")
        self._require_ids(input_ids, "text")
        mask = attention_mask.bool()
        states = _run(self.text_encoder, self.embeddings(input_ids, token_types), mask)
        return Encoded(states, mask, normalize(states[:, 0] @ self.text_projection, dim=-1))

    def encode_image(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_types: torch.Tensor,
        img_feats: torch.Tensor,
    ) -> Encoded:
        """Encode tags and regions.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T + R).
            token_types: (B, T) int64.
            img_feats: (B, R, C) float.

        Raises:
            InputError: lengths, ids or the width of regions are not those of the configuration.
        """
        lengths = self.config.lengths
        for name, given in (("ids", input_ids), ("token types", token_types)):
            _require_length(f"tag {name}", given, lengths.tags, "lengths.tags")
        _require_length("mask of tags and regions", attention_mask, lengths.vision_stream, "lengths.tags + regions")
        self._require_regions(img_feats)
        self._require_ids(input_ids, "tag")
        regions = self.region_dropout(self.region_norm(self.region_embedding(img_feats)))
        mask = attention_mask.bool()
        joined = torch.cat([self.embeddings(input_ids, token_types), regions], dim=1)
        states = _run(self.vision_encoder, joined, mask)
        return Encoded(states, mask, normalize(states[:, 0] @ self.vision_projection, dim=-1))

    def dual(self, inputs: Inputs) -> Dual:
        """Encode both sides of a batch, each alone."""
        text = self.encode_text(inputs.input_ids_a, inputs.attention_mask_a, inputs.token_type_ids_a)
        image = self.encode_image(
            inputs.input_ids_b, inputs.attention_mask_b, inputs.token_type_ids_b, inputs.img_feats
        )
        return Dual(text, image)

    def cross(self, text: Encoded, image: Encoded) -> Cross:
        """Run pairs through the cross encoder: row i of `text` with row i of `image`."""
        start = self.config.first_cross_row
        states = torch.cat([text.states, image.states[:, start:]], dim=1)
        mask = torch.cat([text.mask, image.mask[:, start:]], dim=1)
        layers = []
        for layer in self.cross_encoder.layer:
            states = layer(states, mask[:, None, None, :])
            layers.append(states)
        pooled: torch.Tensor = self.pooler(states)
        return Cross(states, pooled, mask, tuple(layers))

    def forward(self, inputs: Inputs) -> tuple[Dual, Cross]:
        """Both sides, and the pairs as they are given."""
        sides = self.dual(inputs)
        return sides, self.cross(sides.text, sides.image)

    def _require_ids(self, ids: torch.Tensor, side: str) -> None:
        """Check ids (B, L) where it costs nothing: on a GPU it would wait for the device, which refuses them itself."""
        if ids.device.type != "cpu" or not ids.numel():
            return
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.config.vocab_size:
            row = int(((ids < 0) | (ids >= self.config.vocab_size)).any(1).nonzero()[0])
            raise InputError(
                f"{side} ids, row {row} of the batch: expected 0 to {self.config.vocab_size - 1} (vocab_size), got "
                f"{lowest if lowest < 0 else highest}. Is the phrase vocabulary that of this model?"
            )

    def _require_regions(self, img_feats: torch.Tensor) -> None:
        """Check that regions are (B, R, C) of the lengths and width of the configuration."""
        wanted = (self.config.lengths.regions, self.config.region_width)
        if img_feats.ndim != 3 or img_feats.shape[1:] != wanted:
            raise InputError(
                f"regions: expected (batch, {wanted[0]}, {wanted[1]}), which is lengths.regions and region_width of "
                f"the model's configuration, got {tuple(img_feats.shape)}. Features of another extractor need a model "
                "that was trained on them."
            )


def _require_length(what: str, given: torch.Tensor, wanted: int, setting: str) -> None:
    """Check that ids or a mask are (B, L), L being `wanted`."""
    if given.ndim != 2 or given.shape[1] != wanted:
        raise InputError(
            f"{what}: expected (batch, {wanted}), which is {setting} of the model's configuration, got "
            f"{tuple(given.shape)}. Make the inputs with the lengths stored with the model."
        )


def _run(encoder: BertEncoder, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States (B, L, H) through an encoder, whose mask is (B, L)."""
    found: torch.Tensor = encoder(states, mask[:, None, None, :]).last_hidden_state
    return found
