"""Where the text side of a batch comes from: captions tokenized anew, or features of a frozen tower.

Every draw comes from the sample's own generator, so a batch does not depend on who else is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from xmatch.data.augment import SizeAugmentConfig, augment_words
from xmatch.data.feature_sets import FeatureSets
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.parts import TextParts
from xmatch.models.tokenize import caption_tokens, pad_tokens
from xmatch.models.towers.text import TextTowerConfig
from xmatch.training.sample_inputs import EVALUATION_BATCH, Draws


class CaptionBatch(NamedTuple):
    """Ids (B, L) int64 or features (B, L, C), and a mask (B, L) int64 that is 1 where a position counts."""

    values: torch.Tensor
    mask: torch.Tensor


class CaptionInputs(Protocol):
    """The captions of one split, by row."""

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> CaptionBatch:
        """Training inputs of the captions at `rows`, of shape (B,), augmented and padded."""
        ...

    def tokens(self, model: DualEncoder, batch: CaptionBatch) -> torch.Tensor:
        """(B, L, D) unit embeddings of the tokens of such a batch."""
        ...

    def parts(self, model: DualEncoder, batch: CaptionBatch) -> TextParts:
        """Sentence embeddings of such a batch, and what came before them."""
        ...

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """(M, E) sentence embeddings of all captions of the split, nothing dropped."""
        ...


class TokenInputs:
    """Captions tokenized anew each time, with words masked, replaced and deleted as the configuration says.

    Args:
        captions: of the split, in row order.
        tokenizer: the text tower's.
        text: the text tower.
        augment: how many words are changed.
    """

    def __init__(
        self,
        captions: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        text: TextTowerConfig,
        augment: SizeAugmentConfig,
    ) -> None:
        self.captions, self.tokenizer, self.text, self.augment = captions, tokenizer, text, augment
        unknown = tokenizer.unk_token_id or 0
        self.mask_id = int(tokenizer.mask_token_id if tokenizer.mask_token_id is not None else unknown)

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> CaptionBatch:
        """Ids (B, L) of captions, augmented, and their mask."""
        tokens = caption_tokens(self.tokenizer, [self.captions[int(row)] for row in rows], self.text)
        if not self.augment.words:
            return CaptionBatch(*pad_tokens([row.ids for row in tokens], self.tokenizer, self.text))
        changed = [
            augment_words(
                row.ids,
                row.words,
                self.augment.words,
                draw,
                mask_id=self.mask_id,
                vocab_size=len(self.tokenizer),
                special_tokens=self.augment.special_tokens,
            )
            for row, draw in zip(tokens, draws, strict=True)
        ]
        return CaptionBatch(*pad_tokens(changed, self.tokenizer, self.text))

    def tokens(self, model: DualEncoder, batch: CaptionBatch) -> torch.Tensor:
        """(B, L, D) through tower and head."""
        return model.embed_tokens(batch.values, batch.mask)

    def parts(self, model: DualEncoder, batch: CaptionBatch) -> TextParts:
        """Through tower, head and pooling."""
        return model.text_parts(batch.values, batch.mask)

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """Embeddings (M, E) of every caption of the split."""
        return model.encode_texts(self.captions, batch_size=EVALUATION_BATCH)


class TextFeatureInputs:
    """Features of a frozen text tower, one set of tokens a caption.

    Args:
        sets: features by caption id.
        names: ids of the split's captions, in row order.
    """

    def __init__(self, sets: FeatureSets, names: Sequence[str]) -> None:
        self.sets, self.rows = sets, sets.require(names, "captions")[:, 0]

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> CaptionBatch:
        """Features (B, L, C) of captions, and their mask; nothing is drawn."""
        features, mask = self.sets.take(self.rows[rows])
        return CaptionBatch(torch.from_numpy(features), torch.from_numpy(mask.astype(np.int64)))

    def tokens(self, model: DualEncoder, batch: CaptionBatch) -> torch.Tensor:
        """(B, L, D) through the head."""
        return model.tokens_from_features(batch.values.float())

    def parts(self, model: DualEncoder, batch: CaptionBatch) -> TextParts:
        """Through head and pooling."""
        return model.text_parts_from_features(batch.values.float(), batch.mask)

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """Embeddings (M, E) of every caption of the split, block by block."""
        outputs = [np.zeros((0, model.embedding_width), np.float32)]
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(self.rows), EVALUATION_BATCH):
                features, mask = self.sets.take(self.rows[start : start + EVALUATION_BATCH])
                values, real = (torch.from_numpy(part).to(model.device) for part in (features, mask))
                outputs.append(model.sentences_from_features(values.float(), real).float().cpu().numpy())
        model.train(was_training)
        return np.concatenate(outputs)
