"""Fine scores of pairs: every side is encoded once, and pairs go through the cross encoder alone.

Bits depend on which rows are computed together, so images are encoded in fixed blocks of their own order, and captions
in blocks of the pairs' order, whatever was computed before: a shard that is done again has the same scores.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignment.mvptr.config import MvptrConfig
from alignment.mvptr.heads import Matcher
from alignment.mvptr.model import Encoded
from alignment.mvptr.pair_inputs import PairInputs
from alignment.rerank.candidates import Float32, Int64

BLOCK = 64
"""Images, captions or pairs in one forward pass."""
KEPT_BYTES = 4 << 30
"""Of encoded images, kept for further pairs."""


def joined(parts: list[Encoded]) -> Encoded:
    """Encoded sides one after the other."""
    return Encoded(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model is."""
    return next(model.parameters()).device


class PairScorer:
    """Scores pairs of samples' texts and images.

    Args:
        model: in eval mode, on its device.
        inputs: the captions and images.
        kept_bytes: of encoded images; at least two passes' worth are kept.
    """

    def __init__(self, model: Matcher, inputs: PairInputs, kept_bytes: int = KEPT_BYTES) -> None:
        self.model, self.inputs = model, inputs
        each = 4 * model.config.lengths.vision_stream * model.config.hidden_size
        self.kept = max(2 * BLOCK, kept_bytes // each)
        self._images: OrderedDict[int, Encoded] = OrderedDict()
        self.encoded = {"images": 0, "captions": 0}
        """How many were encoded so far; images more than once where not all could be kept."""

    @torch.inference_mode()
    def text_vectors(self, samples: Int64) -> Float32:
        """(B, H) unit vectors of samples' texts, for the coarse search."""
        return self._vectors([self.encode_texts(part) for part in _blocks(samples)])

    @torch.inference_mode()
    def image_vectors(self, images: Int64) -> Float32:
        """(B, H) unit vectors of images by their rows, for the coarse search."""
        return self._vectors([self.encode_images(part) for part in _blocks(images)])

    def _vectors(self, parts: list[Encoded]) -> Float32:
        width = self.model.config.hidden_size
        rows = [part.vector.float().cpu().numpy() for part in parts]
        return np.concatenate([np.zeros((0, width), np.float32), *rows])

    def encode_texts(self, samples: npt.NDArray[np.int64]) -> Encoded:
        """Texts of samples, of shape (B,), encoded."""
        self.encoded["captions"] += len(samples)
        tensors = (part.to(device_of(self.model)) for part in self.inputs.text_batch(samples))
        return self.model.mvptr.encode_text(*tensors)

    def encode_images(self, images: npt.NDArray[np.int64]) -> Encoded:
        """Images by their rows, of shape (B,), encoded."""
        self.encoded["images"] += len(images)
        tensors = (part.to(device_of(self.model)) for part in self.inputs.image_batch(images))
        return self.model.mvptr.encode_image(*tensors)

    @torch.inference_mode()
    def scores(self, samples: Int64, images: Int64) -> Float32:
        """How surely each text and image are a pair, (P,) float32.

        Args:
            samples: (P,) of the texts, those of one text side by side.
            images: (P,) rows of images.
        """
        found = np.empty(len(samples), np.float32)
        for rows in _text_blocks(samples):
            texts, own = np.unique(samples[rows], return_inverse=True)
            encoded = self.encode_texts(texts)
            for start in range(0, len(own), BLOCK):
                part = slice(start, start + BLOCK)
                chosen = joined([self._image(int(image)) for image in images[rows][part]])
                text = encoded.take(torch.from_numpy(own[part]).to(encoded.mask.device))
                found[rows.start + start : rows.start + start + len(own[part])] = (
                    self.model.match_probability(text, chosen).cpu().numpy()
                )
        return found

    def _image(self, image: int) -> Encoded:
        if image not in self._images:
            first = image // BLOCK * BLOCK
            block = np.arange(first, min(first + BLOCK, len(self.inputs.images)))
            encoded = self.encode_images(block)
            for place, row in enumerate(block.tolist()):
                self._images[row] = Encoded(*(part[place : place + 1] for part in encoded))
                self._images.move_to_end(row)
            while len(self._images) > self.kept:
                self._images.popitem(last=False)
        self._images.move_to_end(image)
        return self._images[image]


def _blocks(rows: Int64) -> list[Int64]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _text_blocks(samples: Int64) -> list[slice]:
    """Runs of pairs with at most BLOCK different texts."""
    if not len(samples):
        return []
    changes = np.flatnonzero(np.concatenate([[True], samples[1:] != samples[:-1]]))[::BLOCK]
    ends = [*changes[1:].tolist(), len(samples)]
    return [slice(start, stop) for start, stop in zip(changes.tolist(), ends, strict=True)]


def multiply_adds(config: MvptrConfig) -> dict[str, int]:
    """Multiply-adds of one text, one image and one pair, of the blocks alone: what a second step costs.

    A block has four width² maps and two of width · intermediate a place, and two products of attention.
    """

    def blocks(places: int) -> int:
        width = config.hidden_size
        each = 4 * width * width + 2 * width * config.intermediate_size + 2 * places * width
        return config.num_layers // 2 * places * each

    lengths = config.lengths
    return {
        "text": blocks(lengths.text_stream),
        "image": blocks(lengths.vision_stream),
        "pair": blocks(config.cross_length),
    }


def plain_cost(config: MvptrConfig, pairs: int, texts: int, images: int) -> dict[str, Any]:
    """What a two-step retrieval computes, as a record holds it."""
    each = multiply_adds(config)
    total = each["pair"] * pairs + each["text"] * 2 * texts + each["image"] * 2 * images
    return {
        "pairs": pairs,
        "multiply_adds_per_pair": each["pair"],
        "multiply_adds_per_text": each["text"],
        "multiply_adds_per_image": each["image"],
        "multiply_adds_of_all_pairs": texts * images * each["pair"],
        "multiply_adds": total,
    }
