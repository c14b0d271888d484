"""The settings of a dual encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.heads import HeadConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

Pooling = Literal["mean", "max", "kmax", "gpo", "attention", "cls", "last"]
ImagePooling = Literal[Pooling, "gru", "views"]


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Towers, heads, poolings and the shared space; the defaults are Vokenization's published model."""

    dim: int = 64
    """Width of the shared space."""
    pooling: Pooling = "cls"
    """How a sentence is made of its positions, special tokens included: `cls` the first (Maria), `last` the last real
    one (CLIP, VSE++), `gpo` the generalized pooling operator (VSE-infinity), `mean`, `max`, `kmax` (the 20 largest
    values of each dimension) or `attention`."""
    image_pooling: ImagePooling = "mean"
    """How an image is made of its regions or grid cells, where the image tower gives such: as a sentence is, or by
    `gru` the last state of a recurrent network over them (VSRN), or by `views` several weighted means, of which the
    best counts (CAMERA)."""
    views: int = 12
    """How many views `image_pooling=views` makes."""
    pooling_batch_norm: bool = False
    """End `image_pooling=gru` with a BatchNorm, as VSRN does on Flickr30k."""
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    """The image tower."""
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The text tower."""
    image_head: HeadConfig = field(default_factory=HeadConfig)
    """From image features to the shared space."""
    text_head: HeadConfig = field(default_factory=HeadConfig)
    """From text features to the shared space."""
    image_context: ContextConfig = field(default_factory=ContextConfig)
    """What reasons over regions or cells between head and pooling."""
    text_context: ContextConfig = field(default_factory=ContextConfig)
    """What reasons over words between head and pooling."""
    context_head: bool = False
    """SelfAlign's head on both sides, which makes the final vectors three times as wide."""
    logit_scale: float = 14.2857
    """Starting factor from scores to logits (1 / temperature); learnt by losses that use it."""
    logit_bias: float = 0.0
    """Starting offset of the logits; learnt by the sigmoid loss (SigLIP starts at -10)."""
    scale_features: bool = False
    """Standardise image features by their mean and deviation over the training images."""
    padding_in_batch_norm: bool = False
    """Let padded regions count in the image head's batch statistics, as VSE-infinity does."""
    legacy_norm_axis: bool = False
    """Normalise inside a context over the regions or words, as VSRN, CAMERA and SelfAlign do, not over dimensions."""
    legacy_padding: bool = False
    """Let padding take part in attention, means and batch statistics, as CAMERA and SelfAlign do."""

    def require_sets(self, *, has_sets: bool) -> None:
        """Refuse to reason over the members of an image that is one vector.

        Raises:
            InputError: the image tower gives no sets, but the configuration needs them.
        """
        if has_sets or (self.image_context.kind == "none" and self.image_pooling not in ("gru", "views")):
            return
        raise InputError(
            f"image_context.kind={self.image_context.kind} and image_pooling={self.image_pooling} need an image tower "
            "that gives regions or cells: set image.output=grid, or leave them out."
        )
