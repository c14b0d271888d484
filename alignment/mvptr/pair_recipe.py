"""How an MVPTR is pre-trained, and fine-tuned for retrieval: captions with their images in, losses of pairs out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignment.mvptr.answer_swap import AnswerSwap
from alignment.mvptr.heads import Matcher
from alignment.mvptr.losses_config import ONE_SIDED, MvptrLossConfig
from alignment.mvptr.masking import Vocabularies, draw_of, linked_words, mask_pair
from alignment.mvptr.model import Inputs
from alignment.mvptr.objectives import IGNORED, Draws, draws_of
from alignment.mvptr.pair_inputs import PairText
from alignment.mvptr.pair_losses import PairBatch, pair_losses, pair_rows, weighted_total
from alignment.mvptr.recipe_base import MvptrRecipe
from alignment.mvptr.two_step import PoolConfig, coarse_pools, ordered_pool, pool_pairs, pool_recall, pool_scores
from alignment.mvptr.two_step_scoring import PairScorer
from alignment.rerank.candidates import WAYS, Float32
from alignment.rerank.figures import list_ranks
from xmatch.evaluation.ranks import caption_ranks
from xmatch.evaluation.report import retrieval_figures
from xmatch.evaluation.similarities import EmbeddingSimilarities
from xmatch.training.recipe import PartedLoss, Rows, SampleKey


class MvptrPairRecipe(MvptrRecipe):
    """Trains a `Matcher` on captioned images; a recipe in the sense of `xmatch.training.recipe.Recipe`.

    `precision` is that of the cross encoder over hard negatives.
    """

    def prepare(self) -> None:
        """Vocabularies to mask with, and answers to swap.

        Raises:
            InputError: answers are to be told apart, and there are no two different ones.
        """
        config, start = self.config, self.start
        ids = sorted(start.phrases.phrases) if start.phrases is not None else []
        mask = start.tokenizer.mask_token_id
        self.known = Vocabularies(0 if mask is None else int(mask), len(start.tokenizer), np.array(ids, np.int64))
        has_questions = "qa" in config.losses.active
        self.swap = AnswerSwap(self.train.samples.column("answer"), self.data.train) if has_questions else None

    @property
    def gathers(self) -> bool:
        """Whether negatives come from all workers."""
        return self.config.losses.negatives == "global"

    @property
    def is_masked(self) -> bool:
        """Whether words, tags and phrases are masked."""
        return self.config.task == "pretrain"

    def losses_at(self, epoch: int) -> MvptrLossConfig:
        """The losses of an epoch: in the first of two stages, those of text and vision encoder alone."""
        losses = self.config.losses
        if self.config.schedule == "joint" or epoch >= self.config.first_stage_epochs:
            return losses
        return dataclasses.replace(losses, use=tuple(name for name in losses.use if name in ONE_SIDED))

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Pairs as tensors (B, ...), masked anew in every epoch; a function of (key, indices), row by row."""
        losses, lengths = self.losses_at(key.epoch), self.start.config.lengths
        own_tags = self.train.own_tags(indices)
        drawn = self.swap.draw(indices, key) if self.swap is not None and "qa" in losses.active else None
        texts = self.train.texts(indices, drawn.answers if drawn is not None else None)
        made = [
            self._example(int(index), text, tags, key)
            for index, text, tags in zip(indices, texts, own_tags, strict=True)
        ]
        inputs = [torch.stack(parts) for parts in zip(*(one.inputs for one in made), strict=True)]
        rows = dict(zip(Inputs._fields, inputs, strict=True))
        rows["image_row"] = torch.from_numpy(self.train.image_rows[indices])
        rows["sample"] = torch.from_numpy(indices.copy())
        rows["epoch"] = torch.full((len(indices),), key.epoch)
        rows |= _named_draws(draws_of(indices.tolist(), key, lengths.text_stream))
        if drawn is not None:
            rows["answers"] = torch.tensor(drawn.labels, dtype=torch.int64)
        if "wpg" in losses.active:
            rows["phrase_index"] = torch.tensor([one.text.phrase_places for one in made], dtype=torch.int64)
        if self.is_masked:
            rows["words"] = torch.stack([_labels(one.words, lengths.text_stream) for one in made])
            rows["tags"] = torch.stack([_labels(one.tags, lengths.vision_stream) for one in made])
        return rows

    def _example(self, index: int, text: PairText, own_tags: list[str] | None, key: SampleKey) -> _Example:
        inputs, image = self.train, self.train.image_of(index)
        tags = inputs.tag_ids(image, own_tags)[: self.start.config.lengths.tags - 2]
        if not self.is_masked:
            return _Example(inputs.example(text, image, tags), text, [], [])
        masked = mask_pair(text, tags, self._links(text), self.known, self.config.masking, draw_of(key, index))
        text = text._replace(tokens=masked.tokens, phrases=masked.phrases, answer=masked.answer)
        words = masked.token_labels
        if masked.answer_labels is not None:
            words = [*words, *[IGNORED] * (len(masked.phrases) + 1), *masked.answer_labels]
        return _Example(inputs.example(text, image, masked.tags), text, words, masked.tag_labels)

    def _links(self, text: PairText) -> list[list[int]]:
        if text.links is not None:
            return text.links
        known = self.start.phrases.phrases if self.start.phrases is not None else {}
        return [linked_words(known.get(one, ()), text.spelt) for one in text.phrases]

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """What the losses need of each pair, (B, ...) by name."""
        assert isinstance(model, Matcher)
        return pair_rows(model, _pair_batch(batch), self.losses_at(int(batch["epoch"][0])))

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> PartedLoss:
        """The weighted sum of the losses in use, over all rows given, and each of them."""
        assert isinstance(model, Matcher)
        losses = self.losses_at(epoch)
        found = pair_losses(model, embeddings, losses, self.precision)
        return PartedLoss(weighted_total(found, losses), {str(name): value for name, value in found.items()})

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall of the coarse step on the validation split; with pools, that of the fine step (`fine_…`), too."""
        assert isinstance(model, Matcher)
        return validation_figures(PairScorer(model, self.valid), self.config.valid_pools)


class _Example(NamedTuple):
    """One pair as tensors, its text as it is read, and the labels of its text's places and of its tags."""

    inputs: Inputs
    text: PairText
    words: list[int]
    tags: list[int]


def _labels(own: list[int], length: int) -> torch.Tensor:
    """Labels behind [CLS], of shape (length,)."""
    found = torch.full((length,), IGNORED)
    found[1 : 1 + len(own)] = torch.tensor(own, dtype=torch.int64)
    return found


def _named_draws(draws: Draws) -> dict[str, torch.Tensor]:
    return {f"drawn_{name}": values for name, values in draws._asdict().items()}


def _pair_batch(batch: Rows) -> PairBatch:
    return PairBatch(
        Inputs(*(batch[name] for name in Inputs._fields)),
        batch["image_row"],
        batch["sample"],
        Draws(*(batch[f"drawn_{name}"] for name in Draws._fields)),
        batch.get("phrase_index"),
        batch.get("words"),
        batch.get("tags"),
        batch.get("answers"),
    )


def validation_figures(scorer: PairScorer, pools: PoolConfig | None) -> dict[str, float]:
    """Figures of both steps on a split.

    Args:
        scorer: of its texts and images.
        pools: candidates that the cross encoder orders; none: the coarse step alone.

    Returns:
        Recalls and ranks in both directions and rsum; with pools also `fine_{i2t,t2i}_recall_at_{1,5,10}`, `fine_rsum`,
        and `{i2t,t2i}_pool_recall`, in per cent.
    """
    inputs = scorer.inputs
    owners, count = inputs.image_rows, len(inputs.images)
    images, texts = scorer.image_vectors(np.arange(count)), scorer.text_vectors(np.arange(len(inputs)))
    by_image, by_text = caption_ranks(EmbeddingSimilarities(images, texts), owners)
    figures = retrieval_figures(by_image.ranks, by_text.ranks)
    if pools is None:
        return figures
    found = coarse_pools(images, texts, pools)
    pairs = pool_pairs(found, count)
    scores: Float32 = scorer.scores(pairs.caption, pairs.image)
    ranks = {
        way: list_ranks(way, ordered_pool(found[way], pool_scores(way, found[way], pairs, scores, count)), owners)
        for way in WAYS
    }
    fine = {n: v for n, v in retrieval_figures(ranks["i2t"], ranks["t2i"]).items() if "recall" in n or n == "rsum"}
    return (
        figures
        | {f"fine_{name}": value for name, value in fine.items()}
        | {f"{way}_pool_recall": value for way, value in pool_recall(found, owners).items()}
    )
