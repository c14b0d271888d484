"""AGREE's images as arrays: npz files of (3, 224, 224), normalised as CLIP's, whole or with something masked.

Nothing is unpickled. Arrays become PNG files again, which loses nothing where they were made of 8-bit pixels; masked
copies become boxes, which are painted when they are needed. In a masked copy the pixels of the mask are 0, the mean
colour; any fill is found, as its box is where the copy differs from the image. Of several regions it is the box of all.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from alignment.entities.entity_tables import Box
from xmatch.data import files
from xmatch.data.decode import decode_rgb
from xmatch.data.image_transforms import TransformConfig, build_transform
from xmatch.errors import InputError
from xmatch.models.importers.clip import MEAN, STD

SIDE = 224
CLIP_MEAN = np.array(MEAN["clip"], np.float64)[:, None, None]
CLIP_STD = np.array(STD["clip"], np.float64)[:, None, None]
SLACK = 1.0
"""Steps of 255 by which a pixel may miss 0 … 255 before the array counts as normalised in another way."""
NPY = ".npy"

Array = npt.NDArray[Any]


class Arrays:
    """The arrays of an npz by name, each read when it is asked for; several may be open at once.

    Args:
        source: path of the file, or its bytes.
        where: name for messages.

    Raises:
        InputError: it is no npz.
    """

    def __init__(self, source: str | bytes, where: str) -> None:
        self.where = where
        data = io.BytesIO(source) if isinstance(source, bytes) else files.local_copy(source)
        try:
            self._archive = zipfile.ZipFile(data)
        except FileNotFoundError as error:
            raise InputError(f"{where!r} does not exist; expected an npz of images there.") from error
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{where!r} is no whole npz: {error}. It may be cut short; copy it again.") from error
        self.names = [name[: -len(NPY)] for name in self._archive.namelist() if name.endswith(NPY)]
        self._there = frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._there

    def read(self, name: str) -> Array:
        """One image, (3, H, W).

        Raises:
            InputError: it is broken, holds objects, or has another shape; names file and array.
        """
        try:
            with self._archive.open(name + NPY) as member:
                found: Array = np.lib.format.read_array(member, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise InputError(f"{self.where!r}, array {name!r} cannot be read: {error}.") from error
        if found.ndim != 3 or found.shape[0] != 3 or found.dtype.kind not in "fu":
            raise InputError(
                f"{self.where!r}, array {name!r} is {found.dtype} of shape {found.shape}; expected an image, (3, "
                "height, width) of floating point or of 8 bits."
            )
        return found


def write_arrays(path: str, arrays: Iterable[tuple[str, Array]]) -> int:
    """Write an npz of arrays of any shape, one after the other; how many. Equal arrays give equal bytes."""
    count = 0
    with files.open_atomic(path) as sink, zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name + NPY), buffer.getvalue())
            count += 1
    return count


def pixels_of(array: Array, where: str) -> npt.NDArray[np.uint8]:
    """The 8-bit pixels (H, W, 3) of an array (3, H, W) that is normalised as CLIP's, or of 8 bits itself.

    Raises:
        InputError: it is normalised in another way.
    """
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array.transpose(1, 2, 0))
    found = 255.0 * (array.astype(np.float64) * CLIP_STD + CLIP_MEAN)
    if not np.isfinite(found).all() or found.min() < -SLACK or found.max() > 255 + SLACK:
        raise InputError(
            f"{where} does not hold pixels normalised by CLIP's mean and deviation: they would be "
            f"{found.min():.0f} to {found.max():.0f} of 255. Expected what AGREE's loaders take."
        )
    return np.ascontiguousarray(found.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def array_of(source: str | bytes) -> npt.NDArray[np.float32]:
    """An image as CLIP sees it: (3, 224, 224) float32.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    config = TransformConfig(image_size=SIDE, resize=SIDE, interpolation="bicubic", mean=MEAN["clip"], std=STD["clip"])
    found: npt.NDArray[np.float32] = build_transform(config, train=False)(decode_rgb(source)).numpy()
    return found


def save_png(path: str, pixels: npt.NDArray[np.uint8]) -> None:
    """Write pixels (H, W, 3) as a PNG, atomically."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    files.write_bytes(path, sink.getvalue())


def difference_box(image: Array, masked: Array) -> tuple[float, float, float, float] | None:
    """The box, in [0, 1], in which a masked copy differs from its image; None where it does not.

    Raises:
        ValueError: their shapes differ.
    """
    if image.shape != masked.shape:
        raise ValueError(f"an image of shape {image.shape} and a masked copy of {masked.shape} cannot be compared")
    differs = (image != masked).any(0)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows):
        return None
    height, width = differs.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def masked_array(array: Array, box: Box) -> Array:
    """A copy of an image (3, H, W) with 0 in the pixels of a box."""
    height, width = array.shape[1:]
    found = array.copy()
    x1, x2 = (round(side * width) for side in (box.x1, box.x2))
    y1, y2 = (round(side * height) for side in (box.y1, box.y2))
    found[:, y1:y2, x1:x2] = 0
    return found


class MaskBoxes(NamedTuple):
    """Boxes of masked copies.

    Attributes:
        boxes: of those that could be compared.
        left_out: the others, in words.
    """

    boxes: list[Box]
    left_out: list[str]


def boxes_of_masks(
    masked: Arrays, images: Arrays, key_of: Mapping[str, str], source: str, *, phrase_first: bool
) -> MaskBoxes:
    """Boxes of an archive of masked copies.

    Args:
        masked: named `{image}_{phrase}`, or, with `phrase_first`, `{phrase}_{image}`.
        images: the images themselves.
        key_of: name of an image's array by its id; ids that are not in it name their arrays.
        source: of the boxes.
        phrase_first: the form of the names.
    """
    found, left_out = [], []
    for name in masked.names:
        left, _, right = name.rpartition("_") if phrase_first else name.partition("_")
        phrase, image_id = (left, right) if phrase_first else (right, left)
        key = key_of.get(image_id, image_id)
        if not phrase or not image_id:
            left_out.append(f"{masked.where!r}, array {name!r}: the name holds no phrase and image")
        elif key not in images:
            left_out.append(f"{masked.where!r}, array {name!r}: its image {key!r} is not in {images.where!r}")
        else:
            image, copy = images.read(key), masked.read(name)
            if image.shape != copy.shape:
                left_out.append(f"{masked.where!r}, array {name!r}: shape {copy.shape}, its image has {image.shape}")
                continue
            box = difference_box(image, copy)
            if box is None:
                left_out.append(f"{masked.where!r}, array {name!r}: it does not differ from its image")
            else:
                found.append(Box(image_id, phrase.lower(), source, *box, 1.0))
    return MaskBoxes(found, left_out)


def masked_copies(
    boxes: Iterable[Box], images: Mapping[str, str], *, phrase_first: bool
) -> Iterator[tuple[str, Array]]:
    """Masked copies (3, 224, 224) float32 of images, named as the originals name them.

    Args:
        boxes: what is masked; of one phrase in one image, all at once.
        images: path of each image by its id.
        phrase_first: names are `{phrase}_{image}` rather than `{image}_{phrase}`.

    Raises:
        InputError: an image is not there.
    """
    grouped: dict[tuple[str, str], list[Box]] = {}
    for box in boxes:
        grouped.setdefault((box.image_id, box.phrase), []).append(box)
    for (image_id, phrase), own in grouped.items():
        if image_id not in images:
            raise InputError(f"image {image_id!r} of the box of {phrase!r} is not there; give its folder as --images.")
        array: Array = array_of(images[image_id])
        for box in own:
            array = masked_array(array, box)
        yield (f"{phrase}_{image_id}" if phrase_first else f"{image_id}_{phrase}"), array
