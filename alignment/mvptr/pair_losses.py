"""The losses of a model on a batch, in the halves of a recipe: of a worker's own rows, and of all rows.

The rows are tensors by name, rows first, so that a trainer can gather them (`xmatch.training.recipe.Recipe.embed`).
With global negatives every worker sees all rows; the hard negatives among them, which go through the cross encoder
again, are shared out among the workers, and their outputs gathered. Loss and gradient of W workers are those of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from alignment.mvptr.heads import Matcher, MvptrForPretraining
from alignment.mvptr.losses_config import LossName, MvptrLossConfig
from alignment.mvptr.model import Cross, Encoded, Inputs
from alignment.mvptr.objectives import (
    IGNORED,
    Draws,
    Negatives,
    Scores,
    Terms,
    hard_negatives,
    itm_loss,
    logit_scale,
    masked_rows,
    masked_terms,
    other_images,
    phrase_scores,
    same_images,
    vsc_loss,
    wpg_loss,
)
from xmatch.errors import InputError
from xmatch.training.gather import gather_rows, world_size
from xmatch.training.sample_dropout import SampleDropout
from xmatch.training.step import Precision, tower_autocast

Rows = Mapping[str, torch.Tensor]


class PairBatch(NamedTuple):
    """A batch of pairs to learn from; row i is a text with its image.

    inputs: of the model. image_row: (B,) int64, equal for texts of one image. sample: (B,) int64 number of the sample.
    draws: of the samples. phrase_index: (B, 2) int64, the places of the phrases among the text places, from and to;
    equal where there are none. words: (B, S + Q) int64 labels of masked words, -1 elsewhere. tags: (B, T + R) of masked
    tags. answers: (B,) 0 where a question's answer is right, 1 where it is wrong, -1 where there is none. The last four
    may be absent where no loss in use needs them.
    """

    inputs: Inputs
    image_row: torch.Tensor
    sample: torch.Tensor
    draws: Draws
    phrase_index: torch.Tensor | None = None
    words: torch.Tensor | None = None
    tags: torch.Tensor | None = None
    answers: torch.Tensor | None = None


def pair_rows(model: Matcher, batch: PairBatch, config: MvptrLossConfig) -> dict[str, torch.Tensor]:
    """Encode a worker's own pairs; a row depends on its own sample alone.

    Args:
        model: on the batch's device.
        batch: the pairs.
        config: the losses in use; what none needs is not computed.

    Returns:
        Rows (B, ...) for `pair_losses`, by name.

    Raises:
        InputError: a loss in use needs what the batch or the model does not have.
    """
    _require(model, batch, config)
    text, image = model.mvptr.dual(batch.inputs)
    rows = {"image_row": batch.image_row, "sample": batch.sample}
    rows |= {f"draws_{name}": value.to(text.states.device) for name, value in batch.draws._asdict().items()}
    rows |= {"text_vector": text.vector.float(), "image_vector": image.vector.float()}
    if config.needs_negatives:
        rows |= {"text": text.states, "text_mask": text.mask, "image": image.states, "image_mask": image.mask}
    if batch.tags is not None and "mcr" in config.active and isinstance(model, MvptrForPretraining):
        rows |= _named("mcr", _masked(model, image.states, batch.tags, "tags"))
    if not config.needs_pairs:
        return rows
    pairs = model.mvptr.cross(text, image)
    if "itm" in config.active:
        rows["match"] = model.match_logits(pairs.pooled).float()
    if batch.words is not None and "mlm" in config.active and isinstance(model, MvptrForPretraining):
        words = pairs.sequence[:, : batch.words.shape[1]]
        rows |= _named("mlm", _masked(model, words, batch.words, "words"))
    if batch.answers is not None and "qa" in config.active and isinstance(model, MvptrForPretraining):
        rows |= _named("qa", _answers(model, pairs.pooled, batch.answers))
    if batch.phrase_index is not None and "wpg" in config.active:
        rows |= _concepts(model, pairs, batch.phrase_index, config)
    return rows


def pair_losses(
    model: Matcher, rows: Rows, config: MvptrLossConfig, precision: Precision = "fp32"
) -> dict[LossName, torch.Tensor]:
    """The losses in use, of all rows given, without their weights.

    Args:
        model: the same as for the rows.
        rows: of `pair_rows`, gathered from all workers where config.negatives is `global`.
        config: the losses in use.
        precision: number format of the cross encoder over hard negatives.

    Returns:
        Scalars, of shape (), by name of loss; one that had nothing to learn from is 0.
    """
    found: dict[LossName, torch.Tensor] = {}
    scale = logit_scale(model.logit_scale, config)
    same_image = same_images(rows["image_row"], config)
    for name in ("mcr", "mlm", "qa"):
        if name in config.active:
            found[name] = Terms(rows[f"{name}_total"], rows[f"{name}_places"]).mean
    if "vsc" in config.active:
        found["vsc"] = vsc_loss(rows["text_vector"], rows["image_vector"], scale, same_image)
    negatives = crossed = None
    if config.needs_negatives:
        draws = Draws(*(rows[f"draws_{name}"] for name in Draws._fields))
        negatives = hard_negatives(rows["text_vector"], rows["image_vector"], scale, same_image, draws, config)
        crossed = _cross_negatives(model, rows, negatives, config, precision)
        if "itm" in config.active:
            found["itm"] = itm_loss(rows["match"], crossed["match"], negatives.exists, model.match_label)
    if "wpg" in config.active:
        found["wpg"] = _wpg(rows, same_image, negatives, crossed, config)
    return found


def weighted_total(losses: Mapping[LossName, torch.Tensor], config: MvptrLossConfig) -> torch.Tensor:
    """The sum of losses, scalars of shape (), by weight."""
    return torch.stack([config.weight(name) * value for name, value in losses.items()]).sum()


def _require(model: Matcher, batch: PairBatch, config: MvptrLossConfig) -> None:
    given = {"mlm": batch.words, "mcr": batch.tags, "wpg": batch.phrase_index, "qa": batch.answers}
    for name in config.active:
        if name in given and given[name] is None:
            what = {"wpg": "places of phrases", "qa": "labels of answers"}.get(name, "labels of masked places")
            raise InputError(f"the loss {name!r} is in use, but the batch has no {what}; switch it off in losses.use.")
        if name in ("mlm", "mcr") and not isinstance(model, MvptrForPretraining):
            raise InputError(f"the loss {name!r} is in use, but a model for {model.head.task} has no word head.")
        if name == "qa" and getattr(model, "questions", None) is None:
            raise InputError("the loss 'qa' is in use, but the model has no head for it; give head.questions=true.")
    layers = model.config.num_layers // 2
    if config.wpg_layer is not None and not 0 <= config.wpg_layer < layers:
        raise InputError(f"losses.wpg_layer counts the cross encoder's {layers} layers from 0; got {config.wpg_layer}.")


def _masked(model: MvptrForPretraining, states: torch.Tensor, labels: torch.Tensor, head: str) -> Terms:
    """Cross-entropies of masked places, by rows, of states (B, L, H) and labels (B, L)."""
    rows, columns = masked_rows(labels)
    places = states[rows, columns]
    logits = model.word_logits(places) if head == "words" else model.tag_logits(places)
    return masked_terms(logits, labels[rows, columns], rows, len(labels))


def _answers(model: MvptrForPretraining, pooled: torch.Tensor, labels: torch.Tensor) -> Terms:
    """Cross-entropies of right and wrong answers, by rows of outputs (B, H); rows without an answer have none."""
    assert model.questions is not None
    rows = (labels != IGNORED).nonzero(as_tuple=True)[0]
    return masked_terms(model.questions(pooled[rows]), labels[rows], rows, len(labels))


def _named(name: str, terms: Terms) -> dict[str, torch.Tensor]:
    return {f"{name}_total": terms.total, f"{name}_places": terms.places}


def _concepts(
    model: Matcher, pairs: Cross, phrase_index: torch.Tensor, config: MvptrLossConfig
) -> dict[str, torch.Tensor]:
    """Phrases (B, P, H) and regions (B, R, H) of pairs, all text places being given; and which of them they are."""
    length, first = model.config.lengths.text_stream, model.config.first_region
    states = pairs.layers[-1 if config.wpg_layer is None else config.wpg_layer]
    places = torch.arange(length, device=states.device)
    is_phrase = (places >= phrase_index[:, :1]) & (places < phrase_index[:, 1:])
    return {
        "phrases": states[:, :length],
        "phrase_mask": is_phrase,
        "regions": states[:, first:],
        "region_mask": pairs.mask[:, first:],
    }


def _cross_negatives(
    model: Matcher, rows: Rows, negatives: Negatives, config: MvptrLossConfig, precision: Precision
) -> dict[str, torch.Tensor]:
    """What the cross encoder makes of negatives, each worker of its share; rows (N, ...) of all of them."""
    share = worker_share(len(negatives.own), config).to(negatives.own.device)
    text, image = negatives.text[share], negatives.image[share]
    sides = (
        Encoded(rows["text"][text], rows["text_mask"][text], rows["text_vector"][text]),
        Encoded(rows["image"][image], rows["image_mask"][image], rows["image_vector"][image]),
    )
    with SampleDropout(rows["sample"][negatives.own[share]]), tower_autocast(share.device, precision):
        pairs = model.mvptr.cross(*sides)
        found = {"match": model.match_logits(pairs.pooled).float()}
    if "wpg" in config.active and config.wpg_negatives == "hard":
        mask = rows["phrase_mask"][text]
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        start = places.masked_fill(~mask, mask.shape[1]).amin(1)
        concepts = _concepts(model, pairs, torch.stack([start, start + mask.sum(1)], dim=1), config)
        draws = rows["draws_negative"][negatives.own[share]]
        scores = _scores(concepts, draws, config)
        found |= {"wpg_value": scores.value, "wpg_exists": scores.exists}
    if config.negatives == "local":
        return found
    return {name: gather_rows(values)[: len(negatives.own)] for name, values in sorted(found.items())}


def worker_share(count: int, config: MvptrLossConfig) -> torch.Tensor:
    """Which negatives this worker computes, of shape (n,): every W-th, as many on each, the first one to fill up."""
    workers = world_size() if config.negatives == "global" else 1
    worker = dist.get_rank() if workers > 1 else 0
    places = torch.arange(-(-count // workers) * workers)
    return torch.where(places < count, places, 0)[worker::workers]


def _scores(concepts: Rows, draws: torch.Tensor, config: MvptrLossConfig) -> Scores:
    """How well phrases fit regions, of what `_concepts` gives; `draws` are (B, P)."""
    phrases, mask, regions, region_mask = (concepts[n] for n in ("phrases", "phrase_mask", "regions", "region_mask"))
    return phrase_scores(phrases, mask, regions, region_mask, draws, config.wpg_regions)


def _wpg(
    rows: Rows,
    same_image: torch.Tensor,
    negatives: Negatives | None,
    crossed: Rows | None,
    config: MvptrLossConfig,
) -> torch.Tensor:
    """The grounding loss of all rows (B, ...), a scalar."""
    own = _scores(rows, rows["draws_positive"], config)
    if config.wpg_negatives == "other_image":
        image, exists = other_images(same_image, rows["draws_other"])
        swapped = {**rows, "regions": rows["regions"][image], "region_mask": rows["region_mask"][image]}
        other = _scores(swapped, rows["draws_negative"], config)
        return wpg_loss(own, other._replace(exists=other.exists & exists), config.wpg_margin)
    assert negatives is not None and crossed is not None
    other = Scores(crossed["wpg_value"], crossed["wpg_exists"] & negatives.exists)
    pairs = negatives.own if config.wpg_pairing == "own" else torch.arange(len(own.value), device=own.value.device)
    return wpg_loss(Scores(own.value[pairs], own.exists[pairs]), other, config.wpg_margin)
