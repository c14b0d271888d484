"""Phrases found in images as boxes, by zero-shot detectors of transformers: Grounding DINO and OWLv2 and their kin.

A detector gives scores of every candidate box for every phrase; the best box of each phrase is kept where its score
reaches the threshold. Scores of different detectors cannot be compared: choose the threshold for yours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from alignment.entities.entity_tables import Box, box_table
from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.steps import StepOutput, quarantine_table
from xmatch.embedding import pick_device
from xmatch.errors import InputError
from xmatch.models.staging import local_folder

SOURCE = "grounding"


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """Which detector looks for phrases, and what counts as found."""

    model: str = ""
    """Zero-shot detector: a folder, or a hub name, NAME@REVISION to pin it. Grounding DINO (`grounding-dino`,
    `mm-grounding-dino`) or OWL (`owlv2`, `owlvit`); empty: no boxes."""
    threshold: float = 0.3
    """Least score of a box, between 0 and 1. Detectors' scores differ: look at the boxes of a few images first."""
    phrases_per_pass: int = 16
    """Phrases of one image that the detector is asked for at a time."""
    batch_size: int = 8
    """Images in one forward pass."""

    def __post_init__(self) -> None:
        """Refuse what no detector can do."""
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be between 0 and 1, got {self.threshold}.")
        if self.phrases_per_pass < 1 or self.batch_size < 1:
            raise InputError("phrases_per_pass and batch_size must be at least 1.")


class Candidates(NamedTuple):
    """What a detector says of one image: Q boxes, P phrases.

    Attributes:
        scores: (Q, P) float32, between 0 and 1.
        boxes: (Q, 4) float32, x1, y1, x2, y2 as fractions of the image, not yet clipped to it.
    """

    scores: torch.Tensor
    boxes: torch.Tensor


class Detector(Protocol):
    """Finds phrases in a batch of images."""

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[Candidates]:
        """The candidates of each image for its own phrases, at least one each."""
        ...


class _Loaded:
    """A detector's weights and what prepares its inputs."""

    def __init__(self, folder: str, config: Any, device: str) -> None:
        self.device, self.config = pick_device(device), config
        self.images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self.model = model.to(self.device).eval()

    def _forward(self, images: Sequence[Image.Image], tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, Q, T) of tokens or phrases, and boxes (B, Q, 4) with their corners; on the CPU, float32."""
        inputs = {**self.images(images=list(images), return_tensors="pt"), **tokens}
        with torch.inference_mode():
            outputs = self.model(**{name: value.to(self.device) for name, value in inputs.items()})
        centre_x, centre_y, width, height = outputs.pred_boxes.float().cpu().unbind(-1)
        halves = width / 2, height / 2
        corners = (centre_x - halves[0], centre_y - halves[1], centre_x + halves[0], centre_y + halves[1])
        return outputs.logits.float().cpu(), torch.stack(corners, -1)


class GroundingDino(_Loaded):
    """Grounding DINO: all phrases of an image are one text, each ended by a full stop.

    A phrase's score is the mean over its tokens, as in the phrase grounding of the release (Liu et al., 2023).
    """

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[Candidates]:
        """The candidates of each image for its own phrases.

        Raises:
            InputError: the phrases of an image are longer than the detector's text; says which setting to lower.
        """
        texts, spans = zip(*(joined(one) for one in phrases))
        tokens = self.tokenizer(list(texts), return_offsets_mapping=True, return_tensors="pt", padding=True)
        offsets = tokens.pop("offset_mapping")
        if tokens["input_ids"].shape[1] > self.config.max_text_len:
            raise InputError(
                f"the phrases of an image make {tokens['input_ids'].shape[1]} tokens, and the detector reads "
                f"{self.config.max_text_len}; lower phrases_per_pass."
            )
        logits, boxes = self._forward(images, tokens)
        scores = logits.sigmoid()
        found = []
        for row, own in enumerate(spans):
            weights = torch.stack([_token_weights(offsets[row], start, end) for start, end in own], 1)
            found.append(Candidates(scores[row, :, : weights.shape[0]] @ weights, boxes[row]))
        return found


class Owl(_Loaded):
    """OWLv2 and OWL-ViT: every phrase is a query of its own."""

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[Candidates]:
        """The candidates of each image for its own phrases; a phrase is cut where the text encoder's length ends."""
        most = max(map(len, phrases))
        texts = [text for own in phrases for text in [*own, *[" "] * (most - len(own))]]
        length = self.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        wanted = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        logits, boxes = self._forward(images, wanted)
        found = []
        for row, (image, own) in enumerate(zip(images, phrases)):
            candidates = boxes[row]
            if self.config.model_type == "owlv2":  # sees the image padded to a square, on the right and below
                side = max(image.size)
                candidates = candidates * torch.tensor([side / image.width, side / image.height] * 2)
            found.append(Candidates(logits[row, :, : len(own)].sigmoid(), candidates))
        return found


DETECTORS: dict[str, type[GroundingDino] | type[Owl]] = {
    "grounding-dino": GroundingDino,
    "mm-grounding-dino": GroundingDino,
    "owlv2": Owl,
    "owlvit": Owl,
}


def load_detector(model: str, device: str = "auto") -> Detector:
    """A zero-shot detector by folder, staged folder, URI or hub name.

    Raises:
        InputError: it is not there, or of a kind that is not known.
    """
    folder = local_folder(model, "model")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{model!r} is no detector of transformers: {str(error).splitlines()[0]}") from error
    if config.model_type not in DETECTORS:
        raise InputError(f"{model!r} is of type {config.model_type!r}; expected one of {', '.join(DETECTORS)}.")
    try:
        return DETECTORS[config.model_type](folder, config, device)
    except (OSError, ValueError) as error:
        raise InputError(f"the detector {model!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def joined(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Phrases as Grounding DINO reads them, and where each is in that text; a full stop within one becomes a space."""
    text, spans = "", []
    for phrase in phrases:
        plain = " ".join(phrase.lower().replace(".", " ").replace("?", " ").split()) or "object"
        spans.append((len(text), len(text) + len(plain)))
        text += f"{plain}. "
    return text.rstrip(), spans


def _token_weights(offsets: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Weights, of shape (T,), that average over the tokens within a span of the text; `offsets` are (T, 2)."""
    is_inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
    return is_inside.float() / max(1, int(is_inside.sum()))


def best_boxes(image_id: str, phrases: Sequence[str], found: Candidates, threshold: float) -> list[Box]:
    """The best box of each phrase, clipped to the image, where its score reaches the threshold.

    Candidates of which no part is in the image are none.
    """
    clipped = found.boxes.clamp(0, 1)
    has_area = (clipped[:, :2] < clipped[:, 2:]).all(1)
    boxes = []
    for number, phrase in enumerate(phrases):
        scores = found.scores[:, number].masked_fill(~has_area, -1.0)
        row = int(scores.argmax())
        if scores[row] >= threshold:
            x1, y1, x2, y2 = clipped[row].tolist()
            boxes.append(Box(image_id, phrase, SOURCE, x1, y1, x2, y2, float(scores[row])))
    return boxes


class _Item(NamedTuple):
    """Phrases of an image that are looked for in one pass."""

    image_id: str
    image: Image.Image
    phrases: list[str]


class GroundPhrases:
    """A step: rows of PHRASE_SCHEMA to rows of BOX_SCHEMA; images that cannot be decoded are quarantined.

    A batch holds images of one size: beside a larger one a smaller one is padded, which some detectors see.
    """

    def __init__(self, config: GroundingConfig, *, threads: int = 1, device: str = "auto") -> None:
        self.config, self.model, self.threads, self.device = config, config.model, threads, device
        self.seconds: dict[str, float] = {}
        self._detector: Detector | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Boxes of one shard, image by image in row order, phrase by phrase."""
        torch.set_num_threads(self.threads)
        if self._detector is None:
            self._detector = load_detector(self.model, self.device)
        broken: list[tuple[str, str, str]] = []
        found: dict[int, list[Box]] = {}
        sizes: dict[tuple[int, int], list[tuple[int, _Item]]] = {}
        phrases = 0
        for number, item in enumerate(self._items(rows, broken)):
            phrases += len(item.phrases)
            batch = sizes.setdefault(item.image.size, [])
            batch.append((number, item))
            if len(batch) == self.config.batch_size:
                self._look(sizes.pop(item.image.size), found)
        for batch in sizes.values():
            self._look(batch, found)
        boxes = [box for number in sorted(found) for box in found[number]]
        counts = {
            "images": len(rows) - len(broken),
            "phrases": phrases,
            "boxes": len(boxes),
            "phrases_without_box": phrases - len(boxes),
            "quarantined": len(broken),
        }
        return StepOutput(box_table(boxes), counts, quarantine_table(broken))

    def _items(self, rows: pa.Table, broken: list[tuple[str, str, str]]) -> Iterator[_Item]:
        for row in rows.to_pylist():
            try:
                started = time.perf_counter()
                image = decode_rgb(row["bytes"] if row["bytes"] is not None else row["uri"])
                self.seconds["decode"] = self.seconds.get("decode", 0.0) + time.perf_counter() - started
            except UnreadableImage as error:
                broken.append((row["id"], row["uri"] or "", str(error)))
                continue
            for start in range(0, len(row["phrases"]), self.config.phrases_per_pass):
                yield _Item(row["id"], image, row["phrases"][start : start + self.config.phrases_per_pass])

    def _look(self, batch: list[tuple[int, _Item]], found: dict[int, list[Box]]) -> None:
        """Put the boxes of numbered items into `found`."""
        assert self._detector is not None, "loaded before the first batch"
        items = [item for _, item in batch]
        started = time.perf_counter()
        candidates = self._detector([item.image for item in items], [item.phrases for item in items])
        self.seconds["detector"] = self.seconds.get("detector", 0.0) + time.perf_counter() - started
        for (number, item), one in zip(batch, candidates, strict=True):
            found[number] = best_boxes(item.image_id, item.phrases, one, self.config.threshold)
