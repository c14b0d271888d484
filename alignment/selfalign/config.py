"""The numbers of SelfAlign's two losses."""

from __future__ import annotations

from dataclasses import dataclass

from xmatch.errors import InputError

CONCEPT, CONTEXT = "concept", "context"
"""What the losses are called in reports, and how the names of their rows begin."""


@dataclass(frozen=True, kw_only=True)
class SelfAlignConfig:
    """Weights, prototypes and negatives; the values are the published ones."""

    concept: float = 1.0
    """Weight of the concept loss (LCA): a word learns the prototypes of the region it is nearest to; 0: off. With
    both off the host trains alone."""
    context: float = 1.0
    """Weight of the context loss (CRA): the whole of one side belongs to the parts of the other; 0: off."""
    prototypes: int = 1024
    """Concepts that regions and words are assigned to."""
    student_temperature: float = 0.1
    """Divides the words' scores with the prototypes."""
    epsilon: float = 0.05
    """Temperature of the regions' assignments."""
    iterations: int = 2
    """Of Sinkhorn, which makes these assignments."""
    image_temperature: float = 0.7
    """Divides the scores of an image's guide with the words of captions."""
    text_temperature: float = 0.7
    """Divides the scores of a caption's guide with the regions of images."""
    negatives: int = 512
    """Hardest parts of other pairs that count for each guide; a batch that has fewer uses all."""
    legacy_negatives: bool = False
    """Leave a pair's own parts among its negatives, with a logit of -10, as the original does."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        if min(self.concept, self.context) < 0:
            raise InputError("selfalign: concept and context are weights and must not be negative.")
        if min(self.student_temperature, self.epsilon, self.image_temperature, self.text_temperature) <= 0:
            raise InputError("selfalign: temperatures and epsilon must be above 0.")
        if min(self.prototypes, self.iterations, self.negatives) < 1:
            raise InputError("selfalign: prototypes, iterations and negatives must be at least 1.")

    @property
    def weights(self) -> dict[str, float]:
        """The losses in use and their weights."""
        return {name: weight for name, weight in ((CONCEPT, self.concept), (CONTEXT, self.context)) if weight}
