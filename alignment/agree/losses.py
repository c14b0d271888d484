"""The six losses of AGREE on embeddings; none of them knows a model.

Shapes: B rows, each a caption with its image; P slots for the entities of a caption; D the shared space. All embeddings
are unit vectors. A slot or pair that is not there contributes nothing.

The contrastive losses are means over what is there. The original sums its mask losses over rows and slots, so that they
grow with the batch; here a sum is divided by the rows and multiplied by `reference_batch`, the batch of the published
run, so that the published weights keep their balance at any batch and on any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from xmatch.errors import InputError
from xmatch.training.losses import info_nce

LossName = Literal["contrastive", "prompt", "text_mask", "visual", "visual_mask", "grounded_mask"]
LOSS_NAMES: tuple[LossName, ...] = ("contrastive", "prompt", "text_mask", "visual", "visual_mask", "grounded_mask")
TEXTUAL: tuple[LossName, ...] = ("prompt", "text_mask")
"""Losses that need the entities of the captions."""
VISUAL: tuple[LossName, ...] = ("visual", "visual_mask")
"""Losses that need photos of other images that show an object."""
Negative = Literal["excluded", "negative"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AgreeLossConfig:
    """Which losses are summed up, with which weights; the weights are the published ones."""

    use: tuple[LossName, ...] = LOSS_NAMES
    """The losses that are switched on. One of weight 0 is off, too: off means not computed at all."""
    contrastive: float = 0.90
    """Weight: images and captions (InfoNCE)."""
    prompt: float = 0.03
    """Weight: images and "a photo containing ENTITY", for each entity of the caption (InfoNCE)."""
    text_mask: float = 0.10
    """Weight: an image is nearer to its caption than to the caption with an entity masked (hinge without margin)."""
    visual: float = 0.03
    """Weight: an image that shows an object and "a photo containing OBJECT" (InfoNCE)."""
    visual_mask: float = 0.15
    """Weight: that prompt is nearer to that image than to the image with the object painted over (hinge)."""
    grounded_mask: float = 0.10
    """Weight: a caption is nearer to its image than to the image with one of its entities painted over (hinge)."""
    mask_reduction: Literal["per_row", "sum"] = "per_row"
    """`per_row`: mask losses are sums over slots, means over the rows of the whole batch, times `reference_batch`.
    `sum`: over rows and slots as in the original, so that they grow with the batch."""
    reference_batch: int = 32
    """Rows at which both reductions agree; published were 4 workers with 8 rows each."""
    negatives: Literal["global", "local"] = "global"
    """`global`: the rows of all workers. `local`: each worker's own."""
    same_image: Negative = "excluded"
    """`negative`: captions of one image are each other's negatives, as in the original."""
    same_entity: Negative = "excluded"
    """`negative`: an image is a negative of a prompt although it shows that very entity, as in the original."""
    legacy_detached_masks: bool = False
    """Let the mask losses move nothing but the temperature, as the original's do by mistake."""
    legacy_gather: bool = False
    """Divide the gradients of the embeddings, not that of the temperature, by the number of workers, as the original
    does: it gathers without gradients and then averages."""
    legacy_slots: bool = False
    """Let empty slots take part, as the empty text, as the original does."""

    def __post_init__(self) -> None:
        """Refuse weights and switches that cannot be meant."""
        weights = [self.weight(name) for name in LOSS_NAMES]
        if unknown := [name for name in self.use if name not in LOSS_NAMES]:
            raise InputError(f"losses.use has {unknown[0]!r}; choose of {', '.join(LOSS_NAMES)}.")
        if min(weights) < 0 or self.reference_batch < 1:
            raise InputError("losses: weights must not be negative, and reference_batch must be at least 1.")
        if not self.active:
            raise InputError("losses: every loss is off; switch one on in losses.use, with a weight above 0.")
        if self.legacy_gather and self.negatives == "local":
            raise InputError("losses.legacy_gather needs losses.negatives=global; without gathering it does nothing.")

    def weight(self, name: LossName) -> float:
        """The weight of a loss."""
        return float(getattr(self, name))

    @property
    def active(self) -> tuple[LossName, ...]:
        """The losses that are computed, in the order of LOSS_NAMES."""
        return tuple(name for name in LOSS_NAMES if name in self.use and self.weight(name) > 0)

    def needs(self, *names: LossName) -> bool:
        """Whether one of these losses is computed."""
        return any(name in self.active for name in names)


class Slots(NamedTuple):
    """Prompts and masked captions of the entities of each caption.

    prompts, masked: (B, P, D), of which only what a loss in use needs is there; valid: (B, P) bool; keys: (B, P) int64,
    equal for equal entities.
    """

    prompts: torch.Tensor | None
    masked: torch.Tensor | None
    valid: torch.Tensor
    keys: torch.Tensor


class Objects(NamedTuple):
    """For each row an image that shows an object, its prompt, and the image with the object painted over.

    image, prompt, masked: (B, D), masked only where a loss in use needs it; valid: (B,) bool; keys: (B,) int64, equal
    for equal objects; image_rows: (B,) int64, equal for equal images.
    """

    image: torch.Tensor
    prompt: torch.Tensor
    masked: torch.Tensor | None
    valid: torch.Tensor
    keys: torch.Tensor
    image_rows: torch.Tensor


class Grounded(NamedTuple):
    """Each row's image with one entity painted over, (B, D), and whether there is one, (B,) bool."""

    image: torch.Tensor
    valid: torch.Tensor


class Aligned(NamedTuple):
    """What the losses are computed from: image and text (B, D), image_rows (B,) int64, and what those in use need."""

    image: torch.Tensor
    text: torch.Tensor
    image_rows: torch.Tensor
    slots: Slots | None = None
    objects: Objects | None = None
    grounded: Grounded | None = None


def agree_losses(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> dict[str, torch.Tensor]:
    """The losses in use, each a scalar without its weight (golden `agree_losses`).

    Args:
        rows: the embeddings, (B, D) and (B, P, D), of all rows that are each other's negatives.
        logit_scale: factor from scores to logits, a scalar.
        config: which losses, and how they count.
    """
    return {name: LOSSES[name](rows, logit_scale, config) for name in config.active}


def weighted_total(values: Mapping[str, torch.Tensor], config: AgreeLossConfig) -> torch.Tensor:
    """The sum of the losses in use, scalars of shape (), each times its weight."""
    return torch.stack([config.weight(name) * values[name] for name in config.active]).sum()


def prompt_alignment(
    image: torch.Tensor, prompts: torch.Tensor, logit_scale: torch.Tensor, valid: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """InfoNCE of images and entity prompts, slot by slot, averaged over all prompts that are there.

    The negatives of a slot are the rows that have a prompt in the same slot. Where all have one, this is the original's
    mean over slots.

    Args:
        image: (B, D).
        prompts: (B, P, D).
        logit_scale: factor from scores to logits.
        valid: (B, P) bool.
        same: (P, B, B) bool; prompt of a row (second axis) and image (third) that are no negatives.
    """
    total = image.sum() * 0.0
    for slot in range(prompts.shape[1]):
        rows = valid[:, slot].nonzero().flatten()
        if len(rows):
            excluded = same[slot][rows][:, rows]
            total = total + len(rows) * info_nce(prompts[rows, slot], image[rows], logit_scale, excluded)
    return total / valid.sum().clamp_min(1)


def mask_hinge(whole: torch.Tensor, masked: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """By how much what is masked scores above what is whole, summed: max(0, masked - whole) where `valid`.

    Args:
        whole: (B,) or (B, 1) scores.
        masked: (B,) or (B, P) scores.
        valid: (B,) or (B, P) bool.
    """
    return F.relu(masked - whole).masked_fill(~valid, 0.0).sum()


def held_entities(keys: torch.Tensor, valid: torch.Tensor, same_entity: Negative = "excluded") -> torch.Tensor:
    """Which images show the entity of a prompt, as their own captions' entities say.

    Args:
        keys: (B, P) int64, equal for equal entities.
        valid: (B, P) bool.
        same_entity: `negative`: none does, other than the prompt's own.

    Returns:
        (P, B, B) bool: slot, row of the prompt, row of the image.
    """
    count, slots = keys.shape
    if same_entity == "negative":
        return torch.eye(count, dtype=torch.bool, device=keys.device).expand(slots, count, count)
    rows = [((own[:, None, None] == keys[None]) & valid[None]).any(-1) for own in keys.T]
    return torch.stack(rows)


def one_workers_gradient(embeddings: torch.Tensor, workers: int) -> torch.Tensor:
    """The same values, of any shape, with 1 / `workers` of the gradient.

    All workers compute one loss of the same rows, so what the original's gather leaves out, the gradients that the
    other workers have for one's own rows, are copies of one's own.
    """
    fixed = embeddings.detach()
    return fixed + (embeddings - fixed) / workers


def _contrastive(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """InfoNCE of texts and images (B, D)."""
    return info_nce(rows.text, rows.image, logit_scale, _same(rows.image_rows, config.same_image))


def _prompt(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """InfoNCE of images (B, D) and prompts (B, P, D)."""
    slots = _there(rows.slots)
    held = held_entities(slots.keys, slots.valid, config.same_entity)
    same = _same(rows.image_rows, config.same_image) | held
    return prompt_alignment(rows.image, _there(slots.prompts), logit_scale, slots.valid, same)


def _text_mask(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """Hinge of masked captions (B, P, D) against whole ones (B, D), both scored with their image."""
    slots = _there(rows.slots)
    whole, masked = _dot(rows.image, rows.text)[:, None], _dot(rows.image[:, None], _there(slots.masked))
    return _reduced(mask_hinge(whole, masked, slots.valid), logit_scale, config, len(rows.image))


def _visual(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """InfoNCE over the pairs (B, D) that are there; zero where there is none."""
    objects = _there(rows.objects)
    kept = objects.valid.nonzero().flatten()
    if not len(kept):
        return rows.image.sum() * 0.0
    same = _same(objects.keys[kept], config.same_entity) | _same(objects.image_rows[kept], config.same_entity)
    return info_nce(objects.prompt[kept], objects.image[kept], logit_scale, same)


def _visual_mask(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """Hinge of painted images (B, D) against whole ones, both scored with the prompt of the object."""
    objects = _there(rows.objects)
    whole, masked = (_dot(image, objects.prompt) for image in (objects.image, _there(objects.masked)))
    return _reduced(mask_hinge(whole, masked, objects.valid), logit_scale, config, len(rows.image))


def _grounded_mask(rows: Aligned, logit_scale: torch.Tensor, config: AgreeLossConfig) -> torch.Tensor:
    """Hinge of painted images (B, D) against whole ones, both scored with their caption."""
    grounded = _there(rows.grounded)
    whole, masked = (_dot(image, rows.text) for image in (rows.image, grounded.image))
    return _reduced(mask_hinge(whole, masked, grounded.valid), logit_scale, config, len(rows.image))


LOSSES: dict[LossName, Callable[[Aligned, torch.Tensor, AgreeLossConfig], torch.Tensor]] = {
    "contrastive": _contrastive,
    "prompt": _prompt,
    "text_mask": _text_mask,
    "visual": _visual,
    "visual_mask": _visual_mask,
    "grounded_mask": _grounded_mask,
}


def _reduced(total: torch.Tensor, logit_scale: torch.Tensor, config: AgreeLossConfig, batch: int) -> torch.Tensor:
    """A summed mask loss, a scalar of shape (), as the configuration wants it.

    The original computes scores times the logit scale without a graph and divides by the logit scale with one: its
    gradient by the logarithm of the scale is minus the value.
    """
    if config.mask_reduction == "per_row":
        total = total * (config.reference_batch / batch)
    if config.legacy_detached_masks:
        total = total.detach() * (logit_scale.detach() / logit_scale)
    return total


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Inner products of vectors, (..., D) and (..., D) to (...)."""
    return (one * other).sum(-1)


def _same(keys: torch.Tensor, counts: Negative) -> torch.Tensor:
    """(B, B) bool: pairs that are no negatives."""
    if counts == "negative":
        return torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    return keys[:, None] == keys[None, :]


def _there(part: T | None) -> T:
    if part is None:
        raise ValueError("a loss is in use, but what it needs was not embedded")
    return part
