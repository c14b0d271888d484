"""Trains a text tower on captions alone: two captions of one image belong together.

Captions are cheap where images are not: a text tower that has learnt which captions say the same starts a small
dual encoder far ahead. The loss is InfoNCE over pairs, as Gao et al. 2021 (SimCSE, supervised) train sentence
embeddings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from xmatch.errors import InputError
from xmatch.evaluation.ranks import text_to_image_ranks
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training import losses
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.initial_weights import load_initial
from xmatch.training.recipe import Rows, SampleKey


class TextPairsRecipe(DualEncoderRecipe):
    """One sample an image: two of its captions, drawn anew each epoch.

    Args:
        config: model, augmentation and groups; of the loss only `negatives` counts.
        tokenizer: the text tower's.
        data: samples; their images are never read.

    Raises:
        InputError: no image has two captions.
    """

    def __init__(self, config: RecipeConfig, tokenizer: PreTrainedTokenizerBase, data: RecipeData) -> None:
        super().__init__(config, tokenizer, data)
        self.captions_of = _captions_by_image(self.train.image_rows)
        if not self.captions_of:
            raise InputError(f"{data.train!r}: no image has two captions, so there are no pairs to learn from.")

    @property
    def num_samples(self) -> int:
        """Images with at least two captions."""
        return len(self.captions_of)

    def build_model(self) -> nn.Module:
        """The dual encoder; its image side is not trained."""
        model = DualEncoder.from_config(self.config.model, self.tokenizer)
        load_initial(model, self.data.init_from)
        for name, parameter in model.named_parameters():
            if not name.startswith(("text_", "logit_scale")):
                parameter.requires_grad_(False)
        return model.train()

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Two different captions of each image, augmented, side by side: ids and masks (B, L) of first and second."""
        draws = [np.random.default_rng((key.seed, key.epoch, int(index))) for index in indices]
        pairs = [
            draw.choice(self.captions_of[int(index)], 2, replace=False)
            for draw, index in zip(draws, indices, strict=True)
        ]
        batch: dict[str, torch.Tensor] = {}
        for place, name in enumerate(("first", "second")):
            rows = np.array([pair[place] for pair in pairs], dtype=np.int64)
            tokens = self._captions["train"].batch(rows, draws)
            batch |= {f"{name}_ids": tokens.values, f"{name}_mask": tokens.mask}
        return batch

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """Sentence embeddings (B, E) of both captions, under the names that the pairs of a dual encoder have."""
        assert isinstance(model, DualEncoder)
        text = model.embed_sentences(batch["first_ids"], batch["first_mask"]).float()
        return {"text": text, "image": model.embed_sentences(batch["second_ids"], batch["second_mask"]).float()}

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> torch.Tensor:
        """InfoNCE over all pairs of rows (B, E)."""
        assert isinstance(model, DualEncoder)
        own = torch.eye(len(embeddings["text"]), dtype=torch.bool, device=embeddings["text"].device)
        scale = model.logit_scale.exp().clamp_max(100.0)
        return losses.info_nce(embeddings["text"], embeddings["image"], scale, own)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """How often a caption's nearest other first caption is of its own image: recall of captions by captions."""
        assert isinstance(model, DualEncoder)
        texts = self._captions["valid"].encode_all(model)
        groups = _captions_by_image(self.valid.image_rows)
        if len(groups) < 2:
            raise InputError(f"{self.data.valid!r}: fewer than two images have two captions; nothing can be measured.")
        first = np.array([places[0] for places in groups], dtype=np.int64)
        others = np.concatenate([places[1:] for places in groups])
        own = np.repeat(np.arange(len(groups)), [len(places) - 1 for places in groups]).astype(np.int64)
        ranks = text_to_image_ranks(texts[first], texts[others], own)
        recalls = {f"t2t_recall_at_{k}": float(100 * np.mean(ranks <= k)) for k in (1, 5, 10)}
        return {**recalls, "rsum": sum(recalls.values())}


def _captions_by_image(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Caption rows of each image that has at least two, in the order of the images; `rows` of shape (M,) says whose."""
    order = np.argsort(rows, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(rows[order])) + 1)
    return [places for places in groups if len(places) > 1]
