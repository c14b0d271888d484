"""Prompts and masked captions of a batch, tokenized, and through the text tower."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from alignment.agree.losses import AgreeLossConfig
from alignment.agree.slots import EntityConfig
from alignment.entities.entity_tables import Entity
from alignment.entities.prompts import mask_word, masked_caption, prompt_of
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.tokenize import TokenBatch, caption_tokens, pad_tokens
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.recipe import Rows
from xmatch.training.sample_dropout import SampleDropout


class Texts:
    """Texts to ids as a model's text tower reads them.

    Args:
        tokenizer: the tower's.
        config: of the tower.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TextTowerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    def tokens(self, texts: Sequence[str | None]) -> TokenBatch:
        """Padded ids of N texts; None reads as the empty text."""
        rows = caption_tokens(self.tokenizer, [text or "" for text in texts], self.config)
        return pad_tokens([row.ids for row in rows], self.tokenizer, self.config)


class SlotTexts(NamedTuple):
    """The texts of one caption's slots: entities in lower case, prompts and masked captions; None in an empty slot."""

    entities: list[str | None]
    prompts: list[str | None]
    masked: list[str | None]


class SlotInputs:
    """Prompts and masked captions by caption.

    Args:
        captions: M texts.
        spans: (M, P, 2) characters of their entities, as `choose_entities` gives them.
        texts: makes ids of them.
        entity: how an entity is masked.
        losses: which of the two are needed, and whether empty slots take part as the empty text.
    """

    def __init__(
        self,
        captions: Sequence[str],
        spans: npt.NDArray[np.int32],
        texts: Texts,
        entity: EntityConfig,
        losses: AgreeLossConfig,
    ) -> None:
        self.captions, self.spans, self.texts = captions, spans, texts
        self.mask = mask_word(texts.tokenizer.mask_token, entity.mask_word)
        self.empty = "" if losses.legacy_slots else None
        self.sides = [name for name, loss in (("prompts", "prompt"), ("masked", "text_mask")) if loss in losses.active]

    def texts_of(self, row: int) -> SlotTexts:
        """What stands in the slots of a caption."""
        caption, found = self.captions[row], SlotTexts([], [], [])
        for start, end in self.spans[row].tolist():
            if start < 0:
                for part in found:
                    part.append(self.empty)
                continue
            entity = Entity(caption[start:end], start, end)
            found.entities.append(entity.text.lower())
            found.prompts.append(prompt_of(entity.text))
            found.masked.append(masked_caption(caption, entity, self.mask))
        return found

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Ids and masks (B, P, L) of both sides, which slots count and the keys of their entities (B, P)."""
        found = [self.texts_of(row) for row in rows]
        shape = (len(rows), self.spans.shape[1])
        entities = [text for one in found for text in one.entities]
        batch = {
            "slot_valid": torch.tensor([text is not None for text in entities]).reshape(shape),
            "slot_keys": torch.tensor([text_key(text or "") for text in entities]).reshape(shape),
        }
        for side in self.sides:
            tokens = self.texts.tokens([text for one in found for text in getattr(one, side)])
            batch[f"{side}_ids"], batch[f"{side}_mask"] = (part.reshape(*shape, -1) for part in tokens)
        return batch

    def embed(self, model: DualEncoder, batch: Rows) -> dict[str, torch.Tensor]:
        """(B, P, D) unit embeddings of both sides, zeros in empty slots; and what `batch` says of the slots."""
        rows = {name: batch[name] for name in ("slot_valid", "slot_keys")}
        for side in self.sides:
            ids, mask = batch[f"{side}_ids"], batch[f"{side}_mask"]
            rows[side] = embed_slots(model, ids, mask, batch["slot_valid"], batch["sample"])
        return rows


def embed_slots(
    model: DualEncoder, ids: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, samples: torch.Tensor
) -> torch.Tensor:
    """Embeddings of the slots that are there, in one pass of the text tower.

    Dropout is drawn by (sample, slot), so that it depends on no other row.

    Args:
        model: embeds them.
        ids: (B, P, L).
        mask: (B, P, L).
        valid: (B, P) bool.
        samples: (B,) numbers of the samples.

    Returns:
        (B, P, D) float32, zeros where nothing is.
    """
    count, slots = valid.shape
    chosen = chosen_rows(valid.flatten())
    keys = (samples[:, None] * slots + torch.arange(slots, device=samples.device)).flatten()[chosen]
    with SampleDropout(keys):
        found = model.embed_sentences(ids.flatten(0, 1)[chosen], mask.flatten(0, 1)[chosen]).float()
    return spread(found, chosen, count * slots).reshape(count, slots, -1)


def chosen_rows(valid: torch.Tensor) -> torch.Tensor:
    """Places where `valid`, of shape (N,), is true.

    The first where it never is, so that every worker's rows carry a gradient.
    """
    places = valid.nonzero().flatten()
    return places if len(places) else places.new_zeros(1)


def spread(rows: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows (count, ...): the given rows (n, ...) at their places, zeros elsewhere."""
    return rows.new_zeros((count, *rows.shape[1:])).index_put((places,), rows)


def text_key(text: str) -> int:
    """A number that equal texts share, whatever the process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
