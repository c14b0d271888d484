"""How referring expressions are learnt without boxes: from which image an expression belongs to.

The best region of the true pair is to score higher than the best one of another pair, by a margin. Pairs go through the
cross encoder as in `pair_losses`: each worker its own, then its share of the other ones. Shapes: B samples, R regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignment.mvptr.heads import MvptrForRefexp
from alignment.mvptr.losses_config import MvptrLossConfig
from alignment.mvptr.model import Cross, Encoded, Inputs
from alignment.mvptr.objectives import (
    Draws,
    Negatives,
    Scores,
    draws_of,
    hard_negatives,
    other_images,
    same_images,
    wpg_loss,
)
from alignment.mvptr.pair_losses import worker_share
from alignment.mvptr.task_recipe import MvptrTaskRecipe
from alignment.mvptr.tasks.refexp import WeakConfig
from xmatch.errors import InputError
from xmatch.training.gather import gather_rows
from xmatch.training.recipe import Rows, SampleKey
from xmatch.training.sample_dropout import SampleDropout
from xmatch.training.step import tower_autocast

CHOICE = MvptrLossConfig()
"""Negatives are the most similar ones of all workers' rows, and never of the same image."""


class MvptrWeakRecipe(MvptrTaskRecipe):
    """Trains a model for referring expressions on pairs of expression and image; evaluation is by boxes.

    Samples of training need no boxes. `precision` is that of the cross encoder over other pairs.
    """

    def prepare(self) -> None:
        """Check that there is something to tell an image from.

        Raises:
            InputError: there is one training image alone, so that no pair has a negative.
        """
        super().prepare()
        if len(self.train.images) < 2:
            raise InputError(
                "mvptr.supervision=images learns an expression's image from other images, but mvptr.train has one "
                "alone; give more, or learn from boxes."
            )

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Samples as tensors (B, ...), their images' numbers and draws; a function of (key, indices), row by row."""
        drawn = draws_of(indices.tolist(), key, places=0)
        return {
            **self.inputs(indices, key),
            "image_row": torch.from_numpy(self.train.image_rows[indices]),
            "sample": torch.from_numpy(indices.copy()),
            "drawn_order": drawn.order,
            "drawn_other": drawn.other,
        }

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """Both sides of each pair, and its best region's score, (B, ...) by name."""
        assert isinstance(model, MvptrForRefexp)
        text, image = model.mvptr.dual(Inputs(*(batch[name] for name in Inputs._fields)))
        best = best_region(model, model.mvptr.cross(text, image))
        rows = {name: batch[name] for name in ("image_row", "sample", "drawn_order", "drawn_other")}
        rows |= {f"text_{name}": value for name, value in text._asdict().items()}
        rows |= {f"image_{name}": value for name, value in image._asdict().items()}
        return {**rows, "best": best.value, "exists": best.exists}

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor:
        """The mean hinge of all rows (B, ...) that have regions and another image among the rows given."""
        assert isinstance(model, MvptrForRefexp)
        rows, weak = embeddings, self.config.weak
        found = negatives_of(rows, weak)
        share = worker_share(len(found.own), CHOICE).to(found.own.device)
        with SampleDropout(rows["sample"][found.own[share]]), tower_autocast(share.device, self.precision):
            pairs = model.mvptr.cross(_side(rows, "text", found.text[share]), _side(rows, "image", found.image[share]))
            best = best_region(model, pairs)
        value, exists = (gather_rows(one)[: len(found.own)] for one in best)
        own = Scores(rows["best"][found.own], rows["exists"][found.own])
        return wpg_loss(own, Scores(value, exists & found.exists), weak.margin)


def best_region(model: MvptrForRefexp, pairs: Cross) -> Scores:
    """The greatest score of each pair's regions, padding left out; 0 where there are none."""
    there = pairs.mask[:, model.config.first_region :]
    best = model.region_scores(pairs).float().masked_fill(~there, float("-inf")).amax(1)
    exists = there.any(1)
    return Scores(torch.where(exists, best, torch.zeros_like(best)), exists)


def negatives_of(rows: Rows, weak: WeakConfig) -> Negatives:
    """The other pair of each row, of rows as `MvptrWeakRecipe.embed` gives them."""
    same, order, other = same_images(rows["image_row"], CHOICE), rows["drawn_order"], rows["drawn_other"]
    if weak.negatives == "other_image":
        image, exists = other_images(same, other)
        own = torch.arange(len(image), device=image.device)
        return Negatives(own, image, own, exists)
    nothing = order.new_zeros(len(order), 0)
    draws = Draws(order, other, other, other, nothing, nothing)
    vectors = rows["text_vector"].float(), rows["image_vector"].float()
    return hard_negatives(*vectors, torch.ones_like(vectors[0][0, 0]), same, draws, CHOICE)


def _side(rows: Rows, side: str, chosen: torch.Tensor) -> Encoded:
    """One side (B, ...) of the rows `chosen`."""
    return Encoded(*(rows[f"{side}_{name}"][chosen] for name in Encoded._fields))
