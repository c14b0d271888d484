"""Which reasoning a side of a dual encoder has, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What happens to the members of a set between head and pooling."""

    kind: Literal["none", "gcn", "gated_attention", "gru"] = "none"
    """`gcn`: blocks of region relations with a residual (VSRN). `gated_attention`: self-attention whose queries and
    keys are gated (CAMERA). `gru`: a recurrent layer over the members in their order. `none`: nothing."""
    layers: int = 1
    """Blocks or layers one after the other; VSRN has 4."""
    heads: int = 64
    """Attention heads."""
    dropout: float = 0.0
    """Dropout of attention's output, and in the feed-forward part."""
    positions: bool = False
    """Gate the members by where their boxes lie in the image (CAMERA's image side)."""
    feed_forward: bool = False
    """Two linear maps with a residual behind the reasoning (CAMERA's text side)."""
    normalise_before: bool = False
    """Bring the members to unit length before the reasoning."""
    normalise_after: bool = False
    """And behind it."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        if self.layers < 1 or self.heads < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"a context needs layers >= 1, heads >= 1 and 0 <= dropout < 1; got {self.layers}, {self.heads}, "
                f"{self.dropout}."
            )
        if self.positions and self.kind != "gated_attention":
            raise InputError(f"positions gate the members of kind=gated_attention; got kind={self.kind}.")
