"""Images and texts to vectors, one shard at a time."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.feature_sets import VIEW_MARK, FeatureSets
from xmatch.data.region_sources import RegionSource, open_regions
from xmatch.data.steps import StepOutput, no_quarantine, quarantine_table
from xmatch.data.vectors import Rows, make_vectors
from xmatch.models.context.positions import grid_positions
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.staging import opened
from xmatch.models.tokenize import tokenize
from xmatch.models.towers.image import ImageTower, ImageTowerConfig
from xmatch.models.towers.text import TextTower, TextTowerConfig


def pick_device(device: str) -> torch.device:
    """The device named, or for "auto" a GPU where there is one and the CPU elsewhere."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


class _ImageStep:
    """Decode, forward, and one row per image and view; what both image steps share.

    Rows in: id string, uri string, bytes binary (null: the image is read from uri).
    """

    def __init__(
        self, *, batch_size: int, threads: int, device: str, views: tuple[str, ...], dtype: str, decoders: int = 0
    ) -> None:
        self.batch_size, self.threads, self.device, self.views = batch_size, threads, device, views
        self.dtype, self.decoders = np.dtype(dtype), decoders
        self.seconds: dict[str, float] = {}

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, D), or (B, K, D) of several vectors an image."""
        raise AssertionError("a step of its own kind forwards")

    def _tower(self) -> ImageTower:
        raise AssertionError("a step of its own kind has a tower")

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vectors of one shard; images that cannot be decoded are quarantined with the reason."""
        torch.set_num_threads(self.threads)
        tower = self._tower()
        broken: list[tuple[str, str, str]] = []
        ids: list[str] = []
        uris: list[str | None] = []
        vectors: list[npt.NDArray[np.floating]] = []
        images = self._decoded(rows, tower.transform(train=False))
        while True:
            started = time.perf_counter()
            batch = list(itertools.islice(images, self.batch_size))
            self.seconds["decode"] = self.seconds.get("decode", 0.0) + time.perf_counter() - started
            if not batch:
                break
            broken += [(row["id"], row["uri"] or shard_id, found) for row, found in batch if isinstance(found, str)]
            whole = [(row, found) for row, found in batch if not isinstance(found, str)]
            ids += [row["id"] for row, _ in whole]
            uris += [row["uri"] for row, _ in whole]
            if whole:
                vectors.append(self._run(torch.stack([pixels for _, pixels in whole])))
        table = self._table(ids, uris, vectors)
        return StepOutput(table, {"images": len(ids), "quarantined": len(broken)}, quarantine_table(broken))

    def _decoded(
        self, rows: pa.Table, transform: Callable[[Image.Image], torch.Tensor]
    ) -> Iterator[tuple[dict[str, Any], torch.Tensor | str]]:
        """Every row with its pixels (3, H, W), or why there are none; in order, `decoders` threads working ahead."""

        def one(row: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | str]:
            try:
                return row, transform(decode_rgb(row["bytes"] if row["bytes"] is not None else row["uri"]))
            except UnreadableImage as error:
                return row, str(error)

        ordered = (row for batch in _batches(rows, self.batch_size) for row in batch)
        if not self.decoders:
            yield from map(one, ordered)
            return
        with ThreadPoolExecutor(self.decoders, "decode") as pool:
            ahead = deque(pool.submit(one, row) for row in itertools.islice(ordered, 2 * self.batch_size))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(one, row) for row in itertools.islice(ordered, 1))

    def _run(self, pixels: torch.Tensor) -> npt.NDArray[np.floating]:
        """(B, 3, H, W) to (B, V, K, D): for each view one row, or one row a grid cell."""
        started = time.perf_counter()
        device = pick_device(self.device)
        with torch.inference_mode():
            views = [pixels if view == "center" else pixels.flip(-1) for view in self.views]
            outputs = [self._forward(view.to(device)).float().cpu().numpy() for view in views]
        self.seconds["encoder"] = self.seconds.get("encoder", 0.0) + time.perf_counter() - started
        stacked = np.stack(outputs, axis=1)
        return (stacked if stacked.ndim == 4 else stacked[:, :, None]).astype(self.dtype)

    def _shape(self) -> tuple[int, int]:
        """Rows of one view (0: one pooled vector), and width."""
        raise AssertionError("a step of its own kind knows its shape")

    def _table(self, ids: list[str], uris: list[str | None], vectors: list[npt.NDArray[np.floating]]) -> pa.Table:
        """Rows of vectors (B, V, K, D), batch by batch."""
        cells, width = self._shape()
        count = max(1, cells)
        stacked = np.concatenate(vectors) if vectors else np.zeros((0, len(self.views), count, width), self.dtype)
        views = [i if view == "center" else i + VIEW_MARK for i in ids for view in self.views]
        names = [f"{view}#{cell:04d}" for view in views for cell in range(count)] if cells else views
        groups = [view for view in views for _ in range(count)] if cells else None
        places = [u for u in uris for _ in range(len(self.views) * count)]
        return make_vectors(names, stacked.reshape(len(names), width), groups=groups, uris=places)


def embedding_rows(ids: Sequence[str], embeddings: Rows, uris: Sequence[str | None] | None = None) -> pa.Table:
    """The rows of a key bank.

    Args:
        ids: N images.
        embeddings: (N, E); or (N, V, E), which make V rows an image, `ID#v00` …, in one group, the image.
        uris: N places or nulls.
    """
    if embeddings.ndim == 2 or embeddings.shape[1] == 1:
        return make_vectors(ids, embeddings.reshape(len(ids), embeddings.shape[-1]), uris=uris)
    views = range(embeddings.shape[1])
    return make_vectors(
        [f"{name}#v{view:02d}" for name in ids for view in views],
        embeddings.reshape(-1, embeddings.shape[2]),
        groups=[name for name in ids for _ in views],
        uris=None if uris is None else [uri for uri in uris for _ in views],
    )


class EmbedImages(_ImageStep):
    """Images to the embeddings of a saved dual encoder: the rows of a key bank, one or several an image."""

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 32,
        threads: int = 1,
        device: str = "auto",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        precision: Literal["float32", "bfloat16"] = "float32",
        decoders: int = 0,
    ) -> None:
        """What is embedded how.

        Args:
            model: a saved dual encoder.
            batch_size: images in one forward pass.
            threads: of torch.
            device: `auto`, `cpu` or `cuda`.
            dtype: number format of the embeddings.
            precision: number format of the image tower.
            decoders: threads that decode ahead of the tower; 0: images are decoded in turn.
        """
        super().__init__(
            batch_size=batch_size, threads=threads, device=device, views=("center",), dtype=dtype, decoders=decoders
        )
        self.model, self.precision = model, getattr(torch, precision)
        self._loaded: DualEncoder | None = None

    def _encoder(self) -> DualEncoder:
        if self._loaded is None:
            self._loaded = DualEncoder.from_pretrained(self.model).to(pick_device(self.device)).eval()
            self._loaded.image_tower.to(self.precision)
        return self._loaded

    def _tower(self) -> ImageTower:
        return self._encoder().image_tower

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to embeddings (B, E) or (B, V, E)."""
        model = self._encoder()
        features = model.image_features(pixels.to(self.precision)).float()
        positions = model.grid_positions(features) if model.needs_positions else None
        return model.image_embeddings_from_features(features, None, positions)

    def _table(self, ids: list[str], uris: list[str | None], vectors: list[npt.NDArray[np.floating]]) -> pa.Table:
        """Rows of embeddings (B, 1, V, E), batch by batch."""
        empty = np.zeros((0, *self._encoder().image_shape), self.dtype)
        stacked = np.concatenate([found.reshape(-1, *empty.shape[1:]) for found in (empty, *vectors)])
        return embedding_rows(ids, stacked, uris)


class EmbedRegions:
    """Ready-made image features to the embeddings of a saved dual encoder: the rows of a key bank.

    Rows in: id string, of images that the source has.
    """

    def __init__(
        self,
        model: str,
        source: RegionSource,
        *,
        batch_size: int = 32,
        threads: int = 1,
        device: str = "auto",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """What is embedded how.

        Args:
            model: a saved dual encoder.
            source: the features; every worker maps them where they lie.
            batch_size: images in one forward pass.
            threads: of torch.
            device: `auto`, `cpu` or `cuda`.
            dtype: number format of the embeddings.
        """
        self.model, self.source, self.batch_size, self.threads = model, source, batch_size, threads
        self.device, self.dtype = device, np.dtype(dtype)
        self.seconds: dict[str, float] = {}
        self._loaded: tuple[DualEncoder, FeatureSets] | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vectors of one shard of images, in row order."""
        torch.set_num_threads(self.threads)
        if self._loaded is None:
            model = DualEncoder.from_pretrained(self.model).to(pick_device(self.device)).eval()
            self._loaded = model, open_regions(self.source)
        model, sets = self._loaded
        started = time.perf_counter()
        ids = rows.column("id").to_pylist()
        chosen = sets.require(ids)[:, 0] if ids else np.zeros(0, np.int64)
        parts = [np.zeros((0, *model.image_shape), np.float32)]
        for start in range(0, len(ids), self.batch_size):
            parts.append(_encoded(model, sets, chosen[start : start + self.batch_size]))
        self.seconds["encoder"] = self.seconds.get("encoder", 0.0) + time.perf_counter() - started
        table = embedding_rows(ids, np.concatenate(parts).astype(self.dtype))
        return StepOutput(table, {"images": len(ids)}, no_quarantine())


def _encoded(model: DualEncoder, sets: FeatureSets, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Embeddings (B, E) or (B, V, E) of chosen sets in one forward pass."""
    features, mask = sets.take(chosen)
    if not model.image_tower.gives_sets:
        return model.encode_features(features[:, 0], None, len(chosen))
    positions = None
    if model.needs_positions and model.config.image.kind == "regions":
        positions = sets.take_positions(chosen)
    elif model.needs_positions:
        positions = np.repeat(grid_positions(features.shape[1])[None], len(chosen), axis=0)
    return model.encode_features(features, mask, len(chosen), positions)


class ImageFeatures(_ImageStep):
    """Images to the features of a frozen image tower, before any head; with `flip`, of their mirror images too.

    A pooled tower gives one row an image and view. A grid tower gives one row a cell, all of one view in one group.
    """

    def __init__(
        self,
        tower: ImageTowerConfig,
        *,
        views: tuple[Literal["center", "flip"], ...] = ("center",),
        batch_size: int = 32,
        threads: int = 1,
        device: str = "auto",
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(batch_size=batch_size, threads=threads, device=device, views=views, dtype=dtype)
        self.config = tower
        self._loaded: ImageTower | None = None

    def _tower(self) -> ImageTower:
        if self._loaded is None:
            self._loaded = ImageTower(self.config).to(pick_device(self.device)).eval()
        return self._loaded

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to features (B, C) or (B, K, C)."""
        features: torch.Tensor = self._tower()(pixels)
        return features

    def _shape(self) -> tuple[int, int]:
        return self._tower().cells, self._tower().width


class EmbedTexts:
    """Texts to the sentence embeddings of a saved dual encoder.

    Rows in: id string, text string; and group string, where texts belong together.
    """

    def __init__(self, model: str, *, batch_size: int = 64, threads: int = 1, device: str = "auto") -> None:
        self.model, self.batch_size, self.threads, self.device = model, batch_size, threads, device
        self.seconds: dict[str, float] = {}
        self._loaded: DualEncoder | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Vectors of one shard of texts, in row order."""
        torch.set_num_threads(self.threads)
        if self._loaded is None:
            self._loaded = DualEncoder.from_pretrained(self.model).to(pick_device(self.device)).eval()
        started = time.perf_counter()
        vectors = self._loaded.encode_texts(rows.column("text").to_pylist(), batch_size=self.batch_size)
        self.seconds["encoder"] = self.seconds.get("encoder", 0.0) + time.perf_counter() - started
        groups = rows.column("group").to_pylist() if "group" in rows.column_names else None
        table = make_vectors(rows.column("id").to_pylist(), vectors, groups=groups)
        return StepOutput(table, {"texts": len(table)}, no_quarantine())


class TextFeatures:
    """Texts to the features of a frozen text tower, before any head: one row a token, all of one text in one group.

    Rows in: id string, text string.
    """

    def __init__(
        self,
        tower: TextTowerConfig,
        tokenizer: str,
        *,
        batch_size: int = 64,
        threads: int = 1,
        device: str = "auto",
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        self.config, self.tokenizer, self.dtype = tower, tokenizer, np.dtype(dtype)
        self.batch_size, self.threads, self.device = batch_size, threads, device
        self.seconds: dict[str, float] = {}
        self._loaded: tuple[TextTower, PreTrainedTokenizerBase] | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Features of one shard of texts, in row order."""
        torch.set_num_threads(self.threads)
        if self._loaded is None:
            tower = TextTower(self.config).to(pick_device(self.device)).eval()
            self._loaded = tower, AutoTokenizer.from_pretrained(opened(self.tokenizer), use_fast=True)
        tower, tokenizer = self._loaded
        started = time.perf_counter()
        names: list[str] = []
        groups: list[str] = []
        vectors = [np.zeros((0, tower.width), self.dtype)]
        for batch in _batches(rows, self.batch_size):
            encoded = tokenize(tokenizer, [row["text"] for row in batch], self.config)
            device = pick_device(self.device)
            with torch.inference_mode():
                features = tower(encoded.input_ids.to(device), encoded.attention_mask.to(device)).float().cpu()
            real = encoded.attention_mask.bool()
            for row, kept in zip(batch, real.sum(1).tolist(), strict=True):
                names += [f"{row['id']}#{place:04d}" for place in range(kept)]
                groups += [row["id"]] * kept
            vectors.append(features[real].numpy().astype(self.dtype))
        self.seconds["encoder"] = self.seconds.get("encoder", 0.0) + time.perf_counter() - started
        table = make_vectors(names, np.concatenate(vectors), groups=groups)
        return StepOutput(table, {"texts": len(rows)}, no_quarantine())


def _batches(rows: pa.Table, size: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), size):
        yield rows.slice(start, size).to_pylist()
