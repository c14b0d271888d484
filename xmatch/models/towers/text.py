"""Text towers: any transformers encoder by name or folder, a small BERT from scratch, or a recurrent network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PretrainedConfig

from xmatch.errors import InputError
from xmatch.models.staging import opened
from xmatch.models.towers import clip
from xmatch.models.towers.recurrent import RecurrentEncoder, WordEmbeddings


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """A text encoder and which of its layers are used.

    The published towers of Vokenization are `bert-base-uncased`, frozen, its last four layers concatenated (oldest
    first), with at most 20 tokens (Vokenization) or 75 (Maria), special tokens included.
    """

    kind: Literal["transformer", "bigru", "gru", "words"] = "transformer"
    """`transformer`: an encoder by name, or a small BERT. `bigru`: word embeddings and a bidirectional GRU whose
    directions are averaged (VSE-infinity). `gru`: one direction (VSE++, VSRN). `words`: the embeddings alone, for a
    model that reasons over words behind its head."""
    name: str | None = "bert-base-uncased"
    """Hub name or local folder; null: a BERT from scratch in the sizes below."""
    pretrained: bool = True
    """Load weights with the name; false: random weights in that shape."""
    layers: tuple[int, ...] = (4, 3, 2, 1)
    """Layers used, counted from the last (1); concatenated from the oldest to the last."""
    trainable: bool = False
    """Whether the tower learns; a frozen one is always in eval mode."""
    max_len: int = 20
    """Longest caption in tokens, special tokens included."""
    padding: Literal["longest", "max_length", "fixed"] = "longest"
    """`max_length`: pad every caption to max_len and let padding take part, as SigLIP was trained. `fixed`: pad to
    max_len, and keep padding apart (CAMERA, whose later parts let it in)."""
    vocab: str = ""
    """Word vocabulary of a recurrent tower (JSON with `word2idx`); empty: the words of the training captions."""
    vocab_size: int = 6000
    """Words of the vocabulary of a tower from scratch."""
    word_dim: int = 300
    """Width of a recurrent tower's word embeddings."""
    hidden_size: int = 256
    """Width of a tower from scratch, or of a recurrent tower."""
    num_layers: int = 2
    """Blocks of a tower from scratch."""
    num_heads: int = 4
    """Attention heads of a tower from scratch."""
    dropout: float = 0.1
    """Dropout of a tower from scratch."""
    max_positions: int = 512
    """Longest input of a tower from scratch."""

    def __post_init__(self) -> None:
        """Refuse layers that do not exist."""
        if not self.layers or min(self.layers) < 1:
            raise InputError(f"text.layers counts from the last layer, 1, upwards; got {self.layers}.")
        if self.is_recurrent and self.layers != (1,):
            raise InputError(f"a recurrent text tower has one layer: give text.layers [1], got {self.layers}.")

    @property
    def is_recurrent(self) -> bool:
        """Whether the tower reads words rather than sub-words."""
        return self.kind in ("bigru", "gru", "words")


def parse_lang_layers(text: str, *, original: bool = False) -> tuple[int, ...]:
    """Hidden-state indices of an original `--lang-layers` string, ascending.

    Args:
        text: such as "4,3,2,1", which gives (-4, -3, -2, -1).
        original: keep the original's reading of "-1" as +1, the output of the first block (golden `naming.json`).

    Raises:
        InputError: a layer is not positive (unless `original`).
    """
    numbers = [int(part) for part in text.split(",")]
    if not original and min(numbers) < 1:
        raise InputError(f"layers count from the last, 1, upwards; got {text!r}. Write 1 for the last layer.")
    return tuple(sorted({-number for number in numbers}))


def bert_from_scratch(config: TextTowerConfig, vocab_size: int) -> BertConfig:
    """The configuration of a small BERT."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.max_positions,
    )


class TextTower(nn.Module):
    """Token ids to features at every position.

    Args:
        config: what and which layers.
        architecture: the encoder's own configuration, as saved beside a model; None: found by name or from scratch.
        load_weights: false when a checkpoint's weights follow anyway.
        vocab_size: words of the tokenizer, for a tower from scratch.
    """

    def __init__(
        self,
        config: TextTowerConfig,
        *,
        architecture: PretrainedConfig | None = None,
        load_weights: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone: Any = _build(config, architecture, load_weights, vocab_size or config.vocab_size)
        depth = int(self.backbone.config.num_hidden_layers)
        if max(config.layers) > depth:
            raise InputError(f"text.layers {config.layers} asks for more than the {depth} layers of the encoder.")
        self.indices = sorted(-layer for layer in set(config.layers))
        self.width: int = len(self.indices) * int(self.backbone.config.hidden_size)
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(config.trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> TextTower:
        """Set train mode, except for a frozen tower, which never leaves eval mode."""
        super().train(mode and self.config.trainable)
        return self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features at every position.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for real tokens, special tokens included.

        Returns:
            (B, L, width): the chosen layers, oldest first, concatenated. Of one layer, the last, the encoder's own
            output is taken, so that a final normalisation counts (CLIP, SigLIP).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trainable):
            if self.indices == [-1]:
                last: torch.Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
                return last
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return torch.cat([output.hidden_states[index] for index in self.indices], dim=-1)


def _build(config: TextTowerConfig, architecture: PretrainedConfig | None, load: bool, vocab_size: int) -> Any:
    if config.kind == "words":
        return WordEmbeddings(vocab_size, config.word_dim)
    if config.is_recurrent:
        return RecurrentEncoder(vocab_size, config.word_dim, config.hidden_size, both_ways=config.kind == "bigru")
    if architecture is None and config.name is None:
        architecture = bert_from_scratch(config, vocab_size)
    if isinstance(architecture, BertConfig):
        return BertModel(architecture, add_pooling_layer=False)
    if architecture is not None and architecture.model_type in clip.TEXT_TYPES:
        return clip.text_half_of(architecture)
    try:
        if architecture is not None:
            return AutoModel.from_config(architecture)
        return _by_name(opened(str(config.name)), load and config.pretrained)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the text tower {config.name!r}: {str(error).splitlines()[0]} Give a hub name that can be "
            "reached, or the path of a local folder."
        ) from error


def _by_name(name: str, load: bool) -> Any:
    found = AutoConfig.from_pretrained(name)
    if found.model_type in clip.TEXT_HALVES:
        return clip.build_text(name, found, load)
    if load:
        extra = {"add_pooling_layer": False} if found.model_type == "bert" else {}
        return AutoModel.from_pretrained(name, **extra)
    return BertModel(found, add_pooling_layer=False) if isinstance(found, BertConfig) else AutoModel.from_config(found)
