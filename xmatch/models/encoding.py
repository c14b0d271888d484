"""Lists of texts, images and features to arrays of embeddings, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError
from xmatch.models.tokenize import tokenize

if TYPE_CHECKING:
    from xmatch.models.dual_encoder import DualEncoder


def encode_texts(model: DualEncoder, texts: Sequence[str], batch_size: int) -> npt.NDArray[np.float32]:
    """Embeddings (N, E) of texts; see `DualEncoder.encode_texts`."""
    _check_is_list(texts)
    outputs = [np.zeros((0, model.embedding_width), np.float32)]
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            encoded = tokenize(model.tokenizer, texts[start : start + batch_size], model.config.text)
            ids, mask = encoded.input_ids.to(model.device), encoded.attention_mask.to(model.device)
            outputs.append(model.embed_sentences(ids, mask).float().cpu().numpy())
    return np.concatenate(outputs)


def encode_images(
    model: DualEncoder, images: Sequence[str | bytes | Image.Image], batch_size: int
) -> npt.NDArray[np.float32]:
    """Embeddings (N, E) or (N, V, E) of images; see `DualEncoder.encode_images`."""
    _check_is_list(images)
    transform = model.image_tower.transform(train=False)
    outputs = [np.zeros((0, *model.image_shape), np.float32)]
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            decoded = [i.convert("RGB") if isinstance(i, Image.Image) else decode_rgb(i) for i in batch]
            pixels = torch.stack([transform(image) for image in decoded]).to(model.device)
            outputs.append(model.embed_images(pixels).float().cpu().numpy())
    return np.concatenate(outputs)


def encode_features(
    model: DualEncoder,
    features: npt.NDArray[np.floating],
    mask: npt.NDArray[np.bool_] | None,
    positions: npt.NDArray[np.floating] | None,
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Embeddings (N, E) or (N, V, E) of features; see `DualEncoder.encode_features`."""
    outputs = [np.zeros((0, *model.image_shape), np.float32)]
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(features), batch_size):
            piece = slice(start, start + batch_size)
            rows = torch.from_numpy(np.asarray(features[piece], np.float32)).to(model.device)
            real = None if mask is None else torch.from_numpy(mask[piece]).to(model.device)
            places = None
            if positions is not None:
                places = torch.from_numpy(np.asarray(positions[piece], np.float32)).to(model.device)
            outputs.append(model.image_embeddings_from_features(rows, real, places).float().cpu().numpy())
    return np.concatenate(outputs)


def _check_is_list(items: object) -> None:
    if isinstance(items, str | bytes):
        raise InputError(f"expected a list of texts or images, got a single {type(items).__name__}; wrap it: [x].")


class evaluating:
    """Eval mode within a block, and what it was before afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.was_training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)
