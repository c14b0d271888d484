"""Raw images and texts through an MVPTR: masked words recovered, or the embeddings of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from alignment.entities.taggers import chosen_tagger, load_tagger
from alignment.mvptr.checkpoints import Saved
from alignment.mvptr.heads import MvptrForPretraining
from alignment.mvptr.model import Inputs
from alignment.mvptr.original_checkpoints import from_pretrained
from alignment.mvptr.phrases import phrases_of
from alignment.mvptr.regions.geometry import with_geometry
from alignment.mvptr.tensorize import plain_ids, stack, tag_text, tensorize
from xmatch.data.decode import decode_rgb
from xmatch.data.region_rows import GEOMETRY, ImageRegions
from xmatch.errors import InputError

Photo = str | bytes | Image.Image
"""A path or URI, an encoded image, or one that is open."""
PhraseParser = Callable[[str], Iterable[Sequence[str]]]
"""From a sentence to its phrases of one to three texts."""


class RegionExtractor(Protocol):
    """What finds the regions of images: boxes, names of what is in them, features."""

    def __call__(self, images: Sequence[Image.Image]) -> Sequence[ImageRegions]:
        """The regions of RGB images, in their order; features with or without the geometry of the boxes."""
        ...


class Candidate(NamedTuple):
    """A word for a masked place and its probability."""

    word: str
    probability: float


class Filled(NamedTuple):
    """A text whose masks are recovered.

    text: with the likeliest word at each mask. candidates: of each mask in the text, the likeliest first; none for one
    behind the model's last place, which stays a mask.
    """

    text: str
    candidates: list[list[Candidate]]


class Pair(NamedTuple):
    """One pair as tensors; where its phrases begin and end among the text places, and their ids."""

    inputs: Inputs
    phrases: tuple[int, int]


def rules() -> PhraseParser:
    """Phrases by rule; needs a tagger (pip install vokenray[entities])."""
    tagger = load_tagger(chosen_tagger("auto"))
    return lambda text: phrases_of(text, tagger)


class Pipeline:
    """A saved model with what makes its inputs of raw images and texts.

    Args:
        model: a saved MVPTR by folder, URI or hub name, or loaded.
        regions: finds the regions of images, with features of the width that the model was trained on.
        phrases: finds the phrases of a text; none: by rule where the model has a vocabulary of phrases. Those that the
            vocabulary does not have are left out.
        device: where the model runs, such as cpu or cuda.
        batch_size: pairs in one forward pass, and images in one call of `regions`.
        unique_tags: keep the first of equal tags alone; as the model was trained.

    Raises:
        InputError: the model cannot be read.
    """

    def __init__(
        self,
        model: str | Saved,
        *,
        regions: RegionExtractor,
        phrases: PhraseParser | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        unique_tags: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.saved = from_pretrained(model) if isinstance(model, str) else model
        self.model = self.saved.model.to(device).eval()
        self.config = self.model.config
        self.regions, self.device = regions, torch.device(device)
        self.batch_size, self.unique_tags = batch_size, unique_tags
        self.phrases = rules() if phrases is None and self.saved.phrases is not None else phrases

    def fill_masks(self, images: Sequence[Photo], texts: Sequence[str], top_k: int = 5) -> list[Filled]:
        """Recover the masks, the tokenizer's mask token, of each text beside its image.

        Args:
            images: one a text; equal paths are read once.
            texts: with any number of masks.
            top_k: candidates of each mask.

        Raises:
            InputError: the model has no word head, an image cannot be read, or its regions do not fit the model.
        """
        model = self.model
        if not isinstance(model, MvptrForPretraining):
            raise InputError(f"masks are recovered by a model for pretraining; this one is for {model.head.task}.")
        tokenizer, filled = self.saved.tokenizer, []
        words = min(len(tokenizer), self.config.only_word_size)
        for start, pairs in self._batches(images, texts):
            batch = stack(pair.inputs for pair in pairs).to(self.device)
            masked = batch.input_ids_a == tokenizer.mask_token_id
            with torch.inference_mode():
                states = model.mvptr(batch)[1].sequence[:, : masked.shape[1]][masked]
                best = model.word_logits(states).float()[:, :words].softmax(-1).topk(min(top_k, words))
            candidates = [
                [Candidate(str(tokenizer.convert_ids_to_tokens(i)), p) for i, p in zip(ids, shares, strict=True)]
                for ids, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            for text, count in zip(texts[start:], masked.sum(1).tolist(), strict=False):
                filled.append(_filled(text, str(tokenizer.mask_token), candidates[:count]))
                candidates = candidates[count:]
        return filled

    def embed(self, images: Sequence[Photo], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of every part of each pair.

        Args:
            images: one a text; equal paths are read once.
            texts: sentences.

        Returns:
            Tensors on the CPU, N pairs first, float32 but for masks (bool) and ids (int64); H is the model's width.
            Of the cross encoder: `token` (N, S - 1, H), [CLS] and tokens; `phrase` (N, S + Q - 2, H); `region`
            (N, R, H); `pooled` (N, H). Of the two encoders before it: `text` and `image` (N, H), unit vectors of the
            whole for search; `text_states` (N, S + Q, H) and `image_states` (N, T + R, H). `phrase_id` has the ids of
            the phrases, -1 where there is none, and `token_mask`, `phrase_mask`, `region_mask`, `text_mask` and
            `image_mask` say what is there.

        Raises:
            InputError: an image cannot be read, or its regions do not fit the model.
        """
        parts = [self._embedded(pairs) for _, pairs in self._batches(images, texts)]
        if not parts:
            raise InputError("no pairs to embed; give at least one image and text.")
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def _embedded(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        """What `embed` gives of one batch of pairs, (B, ...) each."""
        config, lengths = self.config, self.config.lengths
        batch = stack(pair.inputs for pair in pairs).to(self.device)
        with torch.inference_mode():
            sides, found = self.model.mvptr(batch)
        span = torch.tensor([pair.phrases for pair in pairs], device=self.device)
        places = span[:, :1] + torch.arange(lengths.text_stream - 2, device=self.device)
        is_phrase = places < span[:, 1:]
        places = torch.where(is_phrase, places, 0)
        tokens = torch.arange(lengths.text - 1, device=self.device)
        phrase = found.sequence.gather(1, places[..., None].expand(-1, -1, config.hidden_size))
        parts = {
            "token": found.sequence[:, : lengths.text - 1],
            "token_mask": tokens < span[:, :1],
            "phrase": phrase,
            "phrase_mask": is_phrase,
            "region": found.sequence[:, config.first_region :],
            "region_mask": found.mask[:, config.first_region :],
        }
        for name, states in list(parts.items()):
            if f"{name}_mask" in parts:
                parts[name] = states.float() * parts[f"{name}_mask"][..., None]
        return parts | {
            "phrase_id": torch.where(is_phrase, batch.input_ids_a.gather(1, places), -1),
            "pooled": found.pooled.float(),
            "text": sides.text.vector.float(),
            "image": sides.image.vector.float(),
            "text_states": sides.text.states.float(),
            "text_mask": sides.text.mask,
            "image_states": sides.image.states.float(),
            "image_mask": sides.image.mask,
        }

    def _batches(self, images: Sequence[Photo], texts: Sequence[str]) -> Iterator[tuple[int, list[Pair]]]:
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images and {len(texts)} texts; expected one image for each text.")
        for start in range(0, len(texts), self.batch_size):
            some = slice(start, start + self.batch_size)
            regions = self._regions(images[some])
            yield start, [self._pair(text, found) for text, found in zip(texts[some], regions, strict=True)]

    def _regions(self, images: Sequence[Photo]) -> list[ImageRegions]:
        """Regions of a batch's images, each different one read and searched once."""
        keys = [photo if isinstance(photo, (str, bytes)) else id(photo) for photo in images]
        different = dict(zip(keys, images, strict=True))
        found = list(self.regions([_opened(photo) for photo in different.values()]))
        if len(found) != len(different):
            raise InputError(f"the region extractor gave {len(found)} sets of regions for {len(different)} images.")
        fitting = {key: self._fitting(regions) for key, regions in zip(different, found, strict=True)}
        return [fitting[key] for key in keys]

    def _fitting(self, regions: ImageRegions) -> ImageRegions:
        """The regions with the geometry of their boxes, where the model was trained with it and they have none."""
        width = self.config.region_width
        if not len(regions.features):
            return regions._replace(features=np.zeros((0, width), np.float32))
        if regions.features.shape[1] + GEOMETRY == width:
            regions = with_geometry(regions)
        if regions.features.shape[1] != width:
            raise InputError(
                f"image {regions.image_id!r}: regions have {regions.features.shape[1]} numbers, the model reads "
                f"{width} (region_width): take the detector whose features it was trained on."
            )
        return regions

    def _pair(self, text: str, regions: ImageRegions) -> Pair:
        tokenizer, lengths, vocabulary = self.saved.tokenizer, self.config.lengths, self.saved.phrases
        tokens = plain_ids(tokenizer, text)[: lengths.text - 2]
        phrases = vocabulary.ids(self.phrases(text)) if vocabulary is not None and self.phrases is not None else []
        inputs = tensorize(
            tokens,
            phrases,
            plain_ids(tokenizer, tag_text(regions.tags, unique=self.unique_tags)),
            regions.features,
            lengths,
            cls=tokenizer.cls_token_id,
            sep=tokenizer.sep_token_id,
        )
        first = 1 + len(tokens)
        return Pair(inputs, (first, int(inputs.attention_mask_a.sum()) - 1))


def _opened(photo: Photo) -> Image.Image:
    return photo.convert("RGB") if isinstance(photo, Image.Image) else decode_rgb(photo)


def _filled(text: str, mask: str, candidates: list[list[Candidate]]) -> Filled:
    """The text with the likeliest word at each mask; a piece of a word is joined to what is before it."""
    pieces = text.split(mask)
    made = pieces[0]
    for number, piece in enumerate(pieces[1:]):
        word = candidates[number][0].word if number < len(candidates) else mask
        made = made.rstrip() + word.removeprefix("##") if word.startswith("##") else made + word
        made += piece
    known = candidates[: len(pieces) - 1]
    return Filled(made, known + [[] for _ in range(len(pieces) - 1 - len(known))])
