"""Painted images of a batch: other images that show an object, and the sample's own with one of its entities.

Which object, image and entity are drawn is a function of (seed, epoch, sample) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from alignment.agree.choices import GroundedChoices, ObjectChoices
from alignment.agree.text_inputs import Texts, chosen_rows, spread, text_key
from alignment.entities.entity_tables import Box
from alignment.entities.painting import mean_colour, paint, random_square
from alignment.entities.prompts import prompt_of
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.training.recipe import Rows, SampleKey
from xmatch.training.sample_dropout import SampleDropout
from xmatch.training.sample_inputs import PixelInputs


class Views:
    """Images as an image tower sees them, whole and painted.

    Args:
        pixels: how images are decoded, cropped and normalised.
        tower: its size and mean colour.
    """

    def __init__(self, pixels: PixelInputs, tower: ImageTowerConfig) -> None:
        self.pixels, self.size, self.colour = pixels, tower.image_size, mean_colour(tower.mean)

    def both(self, uri: str, boxes: Sequence[Box], draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, H, W) of an image, and of the same with boxes filled by the mean colour; both cropped alike."""
        whole, painted = self.pixels.pixels(uri, draw, lambda image: paint(image, boxes, self.colour))
        return whole, painted

    def square(self, image_id: str, draw: np.random.Generator) -> list[Box]:
        """A random square that stands in for the boxes of something."""
        return [random_square(draw, image_id, self.size)]

    def stack(self, images: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """(B, 3, H, W); zeros where there is no image."""
        empty = torch.zeros(3, self.size, self.size)
        return torch.stack([empty if image is None else image for image in images])


class GroundedInputs:
    """Each sample's own image with one of its entities painted over.

    Args:
        choices: entities with boxes.
        views: how images are seen.
        has_square: a square stands in where there is no box.
    """

    def __init__(self, choices: GroundedChoices, views: Views, *, has_square: bool) -> None:
        self.choices, self.views, self.has_square = choices, views, has_square

    def batch(self, rows: Sequence[int], key: SampleKey) -> dict[str, torch.Tensor]:
        """Pixels (B, 3, H, W), cropped as the whole image of the sample is, and whether there are any (B,)."""
        found = [self._painted(row, key) for row in rows]
        return {
            "grounded_pixels": self.views.stack(found),
            "grounded_valid": torch.tensor([one is not None for one in found]),
        }

    def _painted(self, row: int, key: SampleKey) -> torch.Tensor | None:
        """The sample's own image (3, H, W), painted; None where nothing can be painted over."""
        own, draw = self.choices.own, np.random.default_rng((key.seed, key.epoch, row, 2))
        boxes = self.choices.draw(row, draw)
        if not boxes and self.has_square:
            boxes = self.views.square(own.image_id(row), draw)
        return self.views.both(own.uri(row), boxes, own_draw(key, row))[1] if boxes else None

    def embed(self, model: DualEncoder, batch: Rows) -> dict[str, torch.Tensor]:
        """(B, D) unit embeddings, zeros where there is no image; and which are there."""
        valid = batch["grounded_valid"]
        grounded = embed_pixels(model, batch["grounded_pixels"], valid, batch["sample"])
        return {"grounded": grounded, "grounded_valid": valid}


class ObjectInputs:
    """For each sample another image that shows one of its objects, its prompt, and that image painted.

    Args:
        choices: objects that other images show.
        views: how images are seen.
        texts: makes ids of prompts.
        has_square: where a sample has no object, its own image, caption, and a square stand in.
        is_painted: whether the painted image is needed.
    """

    def __init__(
        self, choices: ObjectChoices, views: Views, texts: Texts, *, has_square: bool, is_painted: bool
    ) -> None:
        self.choices, self.views, self.texts = choices, views, texts
        self.has_square, self.is_painted = has_square, is_painted

    def batch(self, rows: Sequence[int], key: SampleKey) -> dict[str, torch.Tensor]:
        """Pixels of both images (B, 3, H, W), ids of the prompts (B, L), and what the losses ask of each pair (B,)."""
        found = [self._pair(row, key) for row in rows]
        tokens = self.texts.tokens([pair.text if pair else None for pair in found])
        batch = {
            "object_pixels": self.views.stack([pair.whole if pair else None for pair in found]),
            "object_ids": tokens.input_ids,
            "object_mask": tokens.attention_mask,
            "object_valid": torch.tensor([pair is not None for pair in found]),
            "object_keys": torch.tensor([text_key(pair.text) if pair else 0 for pair in found]),
            "object_rows": torch.tensor([text_key(pair.uri) if pair else 0 for pair in found]),
        }
        if self.is_painted:
            batch["object_painted"] = self.views.stack([pair.painted if pair else None for pair in found])
        return batch

    def _pair(self, row: int, key: SampleKey) -> _Pair | None:
        draw = np.random.default_rng((key.seed, key.epoch, row, 1))
        drawn, own = self.choices.draw(row, draw), self.choices.own
        if drawn is not None:
            return _Pair(*self.views.both(drawn.uri, drawn.boxes, draw), prompt_of(drawn.name), drawn.uri)
        if not self.has_square:
            return None
        views = self.views.both(own.uri(row), self.views.square(own.image_id(row), draw), own_draw(key, row))
        return _Pair(*views, own.captions[row], own.uri(row))

    def embed(self, model: DualEncoder, batch: Rows) -> dict[str, torch.Tensor]:
        """(B, D) unit embeddings, zeros where there is no pair; and what `batch` says of the pairs."""
        valid, samples = batch["object_valid"], batch["sample"]
        rows = {name: batch[name] for name in ("object_valid", "object_keys", "object_rows")}
        rows["object_image"] = embed_pixels(model, batch["object_pixels"], valid, samples)
        if self.is_painted:
            rows["object_painted"] = embed_pixels(model, batch["object_painted"], valid, samples)
        chosen = chosen_rows(valid)
        with SampleDropout(samples[chosen]):
            found = model.embed_sentences(batch["object_ids"][chosen], batch["object_mask"][chosen]).float()
        return {**rows, "object_prompt": spread(found, chosen, len(valid))}


class _Pair(NamedTuple):
    """An image, the same painted over, the text that belongs to it, and its place."""

    whole: torch.Tensor
    painted: torch.Tensor
    text: str
    uri: str


def embed_pixels(model: DualEncoder, pixels: torch.Tensor, valid: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B, D) float32, through the image tower where `valid`; zeros elsewhere."""
    chosen = chosen_rows(valid)
    with SampleDropout(samples[chosen]):
        found = model.embed_images(pixels[chosen]).float()
    return spread(found, chosen, len(valid))


def own_draw(key: SampleKey, row: int) -> np.random.Generator:
    """The generator that crops a sample's own image."""
    return np.random.default_rng((key.seed, key.epoch, row))
