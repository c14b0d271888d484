"""The one configuration of an MVPTR: sizes, lengths, where the cross encoder reads, and the vocabularies' extents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import BertConfig

from xmatch.errors import InputError

PUBLISHED_FORM: Mapping[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
"""What BERT and all published models have in common, and no setting changes."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many places each part of an input has; all inputs of a model have the same."""

    text: int = 50
    """Tokens, [CLS] and [SEP] included; the original's max_seq_length."""
    phrases: int = 5
    """Places for phrases behind the tokens; phrases also take what the tokens leave free. Its max_phrases."""
    tags: int = 20
    """Tokens of the object tags, [CLS] and [SEP] included; its max_tag_length."""
    regions: int = 50
    """Regions of the image; its max_img_seq_length."""

    def __post_init__(self) -> None:
        """Refuse lengths without room for [CLS], [SEP] and a region."""
        if min(self.text, self.tags) < 2 or self.phrases < 0 or self.regions < 1:
            raise InputError(
                f"lengths: text and tags hold [CLS] and [SEP], so they are at least 2, phrases at least 0 and regions "
                f"at least 1; got text {self.text}, phrases {self.phrases}, tags {self.tags}, regions {self.regions}."
            )

    @property
    def text_stream(self) -> int:
        """Places of the text encoder's input: tokens and phrases."""
        return self.text + self.phrases

    @property
    def vision_stream(self) -> int:
        """Places of the vision encoder's input: tags and regions."""
        return self.tags + self.regions


@dataclass(frozen=True, kw_only=True)
class MvptrConfig:
    """An MVPTR, as it is stored with its weights; the defaults are those of the published base model."""

    hidden_size: int = 768
    num_layers: int = 12
    """Of the whole; text, vision and cross encoder have half as many each."""
    num_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    """Of hidden states, regions and what heads read."""
    attention_dropout: float = 0.1
    max_positions: int = 512
    vocab_size: int = 86_051
    """Rows of the shared embedding table: words, then phrases."""
    only_word_size: int = 30_522
    """The first rows, which are words; masked places are predicted among them."""
    region_width: int = 2054
    """Numbers of a region: its features and six of its box."""
    region_norm: bool = True
    """Normalise the embedded regions (the original's use_img_layernorm)."""
    initializer_range: float = 0.02
    lengths: Lengths = field(default_factory=Lengths)
    cross_from: int | None = None
    """First output of the vision encoder that the cross encoder reads. Null: lengths.tags, the regions alone. 1: tags
    too. 20 with 30 tags: what the published VQA model does, which was built for 30 and cut at 20."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        if self.num_layers < 2 or self.num_layers % 2:
            raise InputError(f"num_layers is shared by encoders of half depth: expected even, got {self.num_layers}.")
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise InputError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}.")
        if not 0 < self.only_word_size <= self.vocab_size:
            raise InputError(
                f"only_word_size counts the first rows of vocab_size ({self.vocab_size}); got {self.only_word_size}."
            )
        if min(self.region_width, self.intermediate_size, self.hidden_size) < 1:
            raise InputError("region_width, intermediate_size and hidden_size are at least 1.")
        if not (0 <= self.dropout < 1 and 0 <= self.attention_dropout < 1):
            raise InputError("dropout and attention_dropout are shares from 0 to below 1.")
        longest = max(self.lengths.text_stream, self.lengths.tags)
        if longest > self.max_positions:
            raise InputError(
                f"the longest sequence has {longest} tokens, but max_positions is {self.max_positions}: "
                "shorten lengths.text, lengths.phrases or lengths.tags."
            )
        if not 1 <= self.first_cross_row <= self.lengths.tags:
            raise InputError(
                f"cross_from is an output of the vision encoder from 1 to lengths.tags ({self.lengths.tags}), so that "
                f"every region is read; got {self.cross_from}."
            )

    @property
    def first_cross_row(self) -> int:
        """First output of the vision encoder that the cross encoder reads."""
        return self.lengths.tags if self.cross_from is None else self.cross_from

    @property
    def first_region(self) -> int:
        """Place of the first region in the cross encoder's sequence."""
        return self.lengths.text_stream + self.lengths.tags - self.first_cross_row

    @property
    def cross_length(self) -> int:
        """Places of the cross encoder's sequence."""
        return self.first_region + self.lengths.regions

    def bert(self) -> BertConfig:
        """The configuration of one encoder's blocks."""
        config = BertConfig(
            **PUBLISHED_FORM,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers // 2,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            max_position_embeddings=self.max_positions,
            initializer_range=self.initializer_range,
        )
        config._attn_implementation = "sdpa"
        return config


def require_published_form(values: Any, where: str) -> None:
    """Check that a BERT's configuration has the form that all blocks here have.

    Raises:
        InputError: it has another activation, epsilon or number of token types.
    """
    given = {**PUBLISHED_FORM, "img_layer_norm_eps": PUBLISHED_FORM["layer_norm_eps"]}
    for name, expected in given.items():
        if isinstance(values, Mapping) and values.get(name, expected) != expected:
            raise InputError(f"{where}: {name} is {values[name]!r}, but the blocks here have {expected!r}.")


def config_from(values: Mapping[str, Any], where: str) -> MvptrConfig:
    """A configuration from plain values, as JSON gives them.

    Raises:
        InputError: a setting is unknown or its value cannot be meant; names the file.
    """
    nested = {**values, "lengths": _known(Lengths, values.get("lengths", {}), where)}
    return _known(MvptrConfig, nested, where)  # type: ignore[no-any-return]


def _known(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    names = {item.name for item in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - names):
        raise InputError(f"{where!r} holds {unknown[0]!r}, which {kind.__name__} does not know.")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where!r}: {error}") from error


PUBLISHED: Mapping[str, tuple[Lengths, int | None]] = {
    "pretrain": (Lengths(text=35, phrases=5, tags=20, regions=50), None),
    "pipeline": (Lengths(text=30, phrases=5, tags=20, regions=50), None),
    "retrieval_flickr30k": (Lengths(text=50, phrases=5, tags=20, regions=50), None),
    "retrieval_coco": (Lengths(text=50, phrases=5, tags=30, regions=50), None),
    "retrieval_coco_evaluation": (Lengths(text=50, phrases=5, tags=20, regions=50), None),
    "vqa": (Lengths(text=128, phrases=5, tags=30, regions=50), 20),
    "snli_ve": (Lengths(text=70, phrases=5, tags=20, regions=70), None),
    "refexp": (Lengths(text=30, phrases=5, tags=20, regions=50), None),
}
"""Lengths and `cross_from` of the published recipes. COCO retrieval was trained with 30 tags and evaluated with 20."""


def published(name: str, config: MvptrConfig | None = None) -> MvptrConfig:
    """A configuration with the lengths and the reading place of a published recipe.

    Args:
        name: of PUBLISHED.
        config: the rest of it; none: the base model.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in PUBLISHED:
        raise InputError(f"no published lengths are called {name!r}; choose of {', '.join(PUBLISHED)}.")
    lengths, cross_from = PUBLISHED[name]
    return dataclasses.replace(config or MvptrConfig(), lengths=lengths, cross_from=cross_from)
