"""Encoded images to RGB, with every way of being broken turned into one error."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageFile, UnidentifiedImageError

from xmatch.data import files
from xmatch.data.packed_images import read_packed, split_packed
from xmatch.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest image decoded, in pixels; a larger one is refused before its pixels are made."""


class UnreadableImage(InputError):
    """An image that cannot be decoded; the message says why."""


def decode_rgb(source: str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB, whole or not at all.

    Args:
        source: a path or URI, `PATH.tar#MEMBER` or `PATH.parquet#ID` of an image inside another file, or the encoded
            bytes.
        max_pixels: width times height allowed.

    Raises:
        UnreadableImage: it is missing, truncated, no image, or too large.
    """
    where = repr(source) if isinstance(source, str) else f"image of {len(source)} bytes"
    try:
        data = _read(source) if isinstance(source, str) else source
    except InputError as error:
        raise UnreadableImage(str(error)) from error
    if not data:
        raise UnreadableImage(f"{where} is empty")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must not pass as whole ones"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise UnreadableImage(f"{where} has {image.width} x {image.height} pixels, more than {max_pixels:,}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # palette transparency, odd EXIF: the pixels are whole
            return image.convert("RGB")
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address, other in every run
        raise UnreadableImage(f"{where} is no image of a known format") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{where} cannot be decoded: {error}") from error


def _read(place: str) -> bytes:
    packed = split_packed(place)
    return read_packed(*packed) if packed else files.read_bytes(place)
