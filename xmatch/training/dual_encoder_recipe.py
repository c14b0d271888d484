"""How a dual encoder is trained: samples in, loss, validation recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from xmatch.data.decode import decode_rgb
from xmatch.data.vectors import matrix, read_vectors
from xmatch.errors import InputError
from xmatch.evaluation.ranks import image_to_text_ranks, text_to_image_ranks
from xmatch.evaluation.report import retrieval_figures
from xmatch.models.dual_encoder import DualEncoder, DualEncoderConfig
from xmatch.training import losses
from xmatch.training.optim import decay_groups
from xmatch.training.recipe import SampleKey
from xmatch.training.samples import Samples, read_samples

EVALUATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and its numbers."""

    name: Literal["paired_hinge", "sentence_paired_hinge", "batchwise_hinge", "info_nce", "hardest_triplet"] = (
        "paired_hinge"
    )
    """`paired_hinge`: Vokenization's, per token. `sentence_paired_hinge`: Maria's. The others take all images of the
    batch as negatives, except other captions' copies of the same image."""
    margin: float = 0.5
    """Margin of the hinge losses."""
    word_dropout: float = 0.0
    """Share of caption tokens replaced by [UNK] in training; 0 as published."""


class Batch(NamedTuple):
    """Names of a batch's tensors, so that a typo is an attribute error."""

    input_ids: str = "input_ids"  # (B, L) int64
    attention_mask: str = "attention_mask"  # (B, L) int64
    image: str = "image"  # (B, C) features or (B, 3, H, W) pixels, float32
    image_row: str = "image_row"  # (B,) int64


KEYS = Batch()


class DualEncoderRecipe:
    """Trains a `DualEncoder` on captions; a recipe in the sense of `xmatch.training.recipe.Recipe`.

    Args:
        model: the model's configuration.
        tokenizer_folder: a folder with the tokenizer, or None for the text tower's own.
        loss: the loss.
        weight_decay: of matrices.
        train_folder, valid_folder: samples written by `write_samples`.
        features: a bank of image features by image id (frozen tower, no augmentation), or None to decode images.
        init_from: a saved model to start from, or None.
    """

    def __init__(
        self,
        *,
        model: DualEncoderConfig,
        tokenizer: PreTrainedTokenizerFast,
        loss: LossConfig,
        weight_decay: float,
        train_folder: str,
        valid_folder: str,
        features: str | None,
    ) -> None:
        self.config, self.loss_config, self.weight_decay = model, loss, weight_decay
        self.tokenizer = tokenizer
        self.train: Samples = read_samples(train_folder)
        self.valid: Samples = read_samples(valid_folder)
        self.features = _Features(features, self.train, self.valid) if features else None
        self._transform: Callable[[Any], torch.Tensor] | None = None

    @property
    def num_samples(self) -> int:
        """Training captions."""
        return len(self.train.captions)

    def build_model(self) -> nn.Module:
        """The dual encoder; weights not loaded from a checkpoint come from torch's current seed."""
        model = DualEncoder.from_config(self.config, self.tokenizer)
        self._transform = model.image_tower.transform(train=self.features is None)
        if self.features is not None:
            model.set_feature_statistics(*self.features.statistics())
        return model.train()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Matrices with weight decay, everything else without."""
        return decay_groups(model, self.weight_decay)

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Mapping[str, torch.Tensor]:
        """Tokenized captions and their images (features or augmented pixels), a function of (key, indices)."""
        rows = self.train.image_rows[indices]
        captions = self.train.captions.column("caption").take(pa.array(indices)).to_pylist()
        tokens = self._tokenize(captions)
        draws = [np.random.default_rng((key.seed, key.epoch, int(index))) for index in indices]
        if self.loss_config.word_dropout:
            _drop_words(tokens["input_ids"], draws, self.loss_config.word_dropout, self.tokenizer)
        if self.features is not None:
            image = self.features.of_train(rows, draws)
        else:
            image = self._pixels(rows, draws)
        return {**tokens, KEYS.image: image, KEYS.image_row: torch.from_numpy(rows.copy())}

    def _tokenize(self, captions: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.config.text.max_len, return_tensors="pt"
        )
        return {KEYS.input_ids: encoded["input_ids"], KEYS.attention_mask: encoded["attention_mask"]}

    def _pixels(self, rows: npt.NDArray[np.int64], draws: list[np.random.Generator]) -> torch.Tensor:
        assert self._transform is not None, "build_model comes first"
        images = []
        for row, draw in zip(rows, draws, strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(draw.integers(2**31)))
                images.append(self._transform(decode_rgb(self.train.images.column("uri")[int(row)].as_py())))
        return torch.stack(images)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scalar loss of a batch."""
        assert isinstance(model, DualEncoder)
        image_rows = batch[KEYS.image_row]
        if self.features is not None:
            images = model.image_embeddings_from_features(batch[KEYS.image])
        else:
            images = model.embed_images(batch[KEYS.image])
        ids, mask = batch[KEYS.input_ids], batch[KEYS.attention_mask]
        name, margin = self.loss_config.name, self.loss_config.margin
        if name == "paired_hinge":
            return losses.paired_hinge(model.embed_tokens(ids, mask), images, mask, margin)
        if name == "sentence_paired_hinge":
            return losses.sentence_paired_hinge(model.embed_sentences(ids, mask), images, margin, reduction="mean")
        texts = model.embed_sentences(ids, mask)
        same = image_rows[:, None] == image_rows[None, :]
        if name == "info_nce":
            return losses.info_nce(texts, images, model.logit_scale.exp(), same)
        all_negatives = {"batchwise_hinge": losses.sentence_batchwise_hinge, "hardest_triplet": losses.hardest_triplet}
        return all_negatives[name](texts, images, margin, same)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall in both directions and rsum on the validation split, with sentence embeddings."""
        assert isinstance(model, DualEncoder)
        device = next(model.parameters()).device
        captions = self.valid.captions.column("caption").to_pylist()
        with torch.inference_mode():
            texts = model.encode_texts(captions, batch_size=EVALUATION_BATCH)
            if self.features is not None:
                features = torch.from_numpy(self.features.of_valid()).to(device)
                images = model.image_embeddings_from_features(features).float().cpu().numpy()
            else:
                images = model.encode_images(self.valid.images.column("uri").to_pylist())
        return retrieval_figures(
            image_to_text_ranks(images, texts, self.valid.image_rows),
            text_to_image_ranks(images, texts, self.valid.image_rows),
        )

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `DualEncoder.from_pretrained` loads."""
        assert isinstance(model, DualEncoder)
        model.save_pretrained(folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`."""
        assert isinstance(model, DualEncoder)
        model.load_weights(folder)


class _Features:
    """Image features by image id, aligned to the rows of the training and the validation images.

    A bank may hold several views of an image (rows with one group); training draws one view per sample.
    """

    def __init__(self, path: str, train: Samples, valid: Samples) -> None:
        table = read_vectors(path)
        self.vectors = matrix(table)
        ids = table.column("id").to_pylist()
        groups = [group or name for group, name in zip(table.column("group").to_pylist(), ids, strict=True)]
        views: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            views.setdefault(group, []).append(row)
        self._train = self._align(path, train, views)
        self._valid = self._align(path, valid, views)

    @staticmethod
    def _align(path: str, samples: Samples, views: dict[str, list[int]]) -> npt.NDArray[np.int64]:
        """(images, views) rows of the bank."""
        names = samples.images.column("image_id").to_pylist()
        missing = [name for name in names if name not in views]
        if missing:
            raise InputError(
                f"{path!r} lacks features of {len(missing)} of {len(names)} images, the first is {missing[0]!r}. Look "
                "into its quarantine folder for the reasons, and mend or remove these images."
            )
        return np.array([views[name] for name in names], dtype=np.int64)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each feature over the training images, (C,) each."""
        rows = self.vectors[self._train[:, 0]].astype(np.float64)
        return torch.from_numpy(rows.mean(0)).float(), torch.from_numpy(rows.std(0)).float()

    def of_train(self, rows: npt.NDArray[np.int64], draws: list[np.random.Generator]) -> torch.Tensor:
        """(B, C) features, one view drawn for each sample."""
        choices = self._train[rows]
        picked = [choices[i, draw.integers(choices.shape[1])] for i, draw in enumerate(draws)]
        return torch.from_numpy(self.vectors[picked].astype(np.float32))

    def of_valid(self) -> npt.NDArray[np.float32]:
        """(images, C) features of the first view."""
        return self.vectors[self._valid[:, 0]].astype(np.float32)


def _drop_words(
    input_ids: torch.Tensor, draws: list[np.random.Generator], share: float, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Replace a share of the real tokens by [UNK], in place; special tokens stay."""
    special = torch.isin(input_ids, torch.tensor(tokenizer.all_special_ids))
    chosen = torch.from_numpy(np.stack([draw.random(input_ids.shape[1]) < share for draw in draws]))
    input_ids[chosen & ~special] = tokenizer.unk_token_id
