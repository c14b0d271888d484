"""Where the image side of a batch comes from: decoded pixels, or ready-made features; and the augmentation of both.

Every draw comes from the sample's own generator, so a batch does not depend on who else is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from xmatch.data.augment import SizeAugmentConfig, keep_cells, keep_regions
from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.feature_sets import FeatureSets
from xmatch.data.local_cache import LocalCache
from xmatch.data.packed_images import split_packed
from xmatch.models.context.positions import grid_positions
from xmatch.models.dual_encoder import DualEncoder
from xmatch.models.parts import ImageParts

EVALUATION_BATCH = 128
EVALUATION_IMAGES = 32
"""Images decoded and embedded at once in an evaluation."""
Draws = Sequence[np.random.Generator]


class ImageBatch(NamedTuple):
    """Pixels (B, 3, H, W) or features (B, K, C), K = 1 of pooled ones, and which cells or regions count, (B, K) bool.

    positions (B, K, 6) where the model has to be told where ready-made regions lie; else None.
    """

    values: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor | None = None


class ImageInputs(Protocol):
    """The images of one split, by row."""

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> ImageBatch:
        """Training inputs of the images at `rows`, of shape (B,), augmented."""
        ...

    def parts(self, model: DualEncoder, batch: ImageBatch) -> ImageParts:
        """Embeddings of such a batch, and what came before them."""
        ...

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """(N, E) or (N, V, E) embeddings of all images of the split, nothing dropped."""
        ...


class PixelInputs:
    """Images decoded anew each time.

    Args:
        uris: of the split's images.
        transform: from a decoded image to pixels, drawing from torch's generator.
        cells: grid cells of an image; 0 for pooled towers.
        augment: how many cells are dropped.
        cache: keeps copies of what lies at URIs.
    """

    def __init__(
        self,
        uris: Sequence[str],
        transform: Callable[[Any], torch.Tensor],
        cells: int,
        augment: SizeAugmentConfig,
        cache: LocalCache,
    ) -> None:
        self.uris, self.transform, self.cells, self.augment, self.cache = uris, transform, cells, augment, cache
        cache.learn(_file_of(uri) for uri in uris)

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> ImageBatch:
        """Decoded, cropped and mirrored pixels (B, 3, H, W), and which grid cells stay, (B, K)."""
        images, kept = [], []
        for row, draw in zip(rows, draws, strict=True):
            images += self.pixels(self.uris[int(row)], draw)
            kept.append(keep_cells(max(1, self.cells), self.augment.cells, draw))
        return ImageBatch(torch.stack(images), torch.from_numpy(np.stack(kept)))

    def pixels(
        self, uri: str, draw: np.random.Generator, *changes: Callable[[Image.Image], Image.Image]
    ) -> list[torch.Tensor]:
        """(3, H, W) of an image as it is, then of each change of it, all cropped and mirrored alike."""
        image, seed = self._decode(uri), int(draw.integers(2**31))
        seen = []
        for variant in (image, *(change(image) for change in changes)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                seen.append(self.transform(variant))
        return seen

    def parts(self, model: DualEncoder, batch: ImageBatch) -> ImageParts:
        """Through tower, head and pooling."""
        return model.pixel_parts(batch.values, batch.mask if self.cells else None)

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """Embeddings (N, E) or (N, V, E) of every image of the split, decoded for it."""
        outputs = [np.zeros((0, *model.image_shape), np.float32)]
        for start in range(0, len(self.uris), EVALUATION_IMAGES):
            decoded = [self._decode(uri) for uri in self.uris[start : start + EVALUATION_IMAGES]]
            outputs.append(model.encode_images(decoded, EVALUATION_IMAGES))
        return np.concatenate(outputs)

    def _decode(self, uri: str) -> Image.Image:
        """An image by its own name, also where a copy of it is broken."""
        file = _file_of(uri)
        with self.cache.open(file) as local:
            try:
                return decode_rgb(local + uri.removeprefix(file))
            except UnreadableImage as error:
                raise UnreadableImage(str(error).replace(local, file)) from error


def _file_of(uri: str) -> str:
    """The file that an image is in: its own, or a tar or Parquet file."""
    packed = split_packed(uri)
    return packed[0] if packed else uri


class FeatureInputs:
    """Ready-made features of a split's images; where they have a mirrored view, one of the two is drawn.

    Args:
        sets: features by image id.
        names: ids of the split's images, in row order.
        is_set: regions or cells (B, K, C) rather than one vector (B, C).
        augment: how many regions or cells are dropped.
        places: whether the model has to be told where members lie: `boxes` as the sets say, `grid` as the cells of a
            grid do.
    """

    def __init__(
        self,
        sets: FeatureSets,
        names: Sequence[str],
        is_set: bool,
        augment: SizeAugmentConfig,
        places: Literal["none", "boxes", "grid"] = "none",
    ) -> None:
        self.sets, self.is_set, self.augment, self.places = sets, is_set, augment, places
        self.views = sets.require(names)
        if len(self.views):
            self._positions(self.views[:1, 0])  # what is missing shows now

    def batch(self, rows: npt.NDArray[np.int64], draws: Draws) -> ImageBatch:
        """Features (B, K, C) of one view of each image, and which members stay, (B, K)."""
        views = self.views[rows]
        drawn = np.array([draw.integers(views.shape[1]) for draw in draws], dtype=np.int64)
        chosen = views[np.arange(len(rows)), drawn]
        features, mask = self.sets.take(chosen)
        for place, draw in enumerate(draws if self.is_set else ()):
            count = int(mask[place].sum())
            kept = keep_regions(count, self.augment.regions, draw) & keep_cells(count, self.augment.cells, draw)
            mask[place, :count] &= kept if kept.any() else True
        positions = self._positions(chosen)
        told = None if positions is None else torch.from_numpy(positions)
        return ImageBatch(torch.from_numpy(features), torch.from_numpy(mask), told)

    def _positions(self, sets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """Where the members of sets (B,) lie, (B, K, 6); None where nobody asks.

        Raises:
            InputError: it is asked, and nobody knows.
        """
        if self.places == "none":
            return None
        if self.places == "boxes":
            return self.sets.take_positions(sets)
        spans = self.sets.spans[sets]
        cells = grid_positions(int((spans[:, 2] - spans[:, 1]).max()))
        return np.repeat(cells[None], len(sets), axis=0)

    def parts(self, model: DualEncoder, batch: ImageBatch) -> ImageParts:
        """Through head and pooling."""
        values = batch.values.float()
        if self.is_set:
            return model.image_parts(values, batch.mask, batch.positions)
        return model.image_parts(values[:, 0])

    def encode_all(self, model: DualEncoder) -> npt.NDArray[np.float32]:
        """Embeddings (N, E) or (N, V, E) of every image of the split, block by block."""
        outputs = [np.zeros((0, *model.image_shape), np.float32)]
        for start in range(0, len(self.views), EVALUATION_BATCH):
            sets = self.views[start : start + EVALUATION_BATCH, 0]
            features, mask = self.sets.take(sets)
            if self.is_set:
                outputs.append(model.encode_features(features, mask, EVALUATION_BATCH, self._positions(sets)))
            else:
                outputs.append(model.encode_features(features[:, 0], None, EVALUATION_BATCH))
        return np.concatenate(outputs)
