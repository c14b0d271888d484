"""Encoded images to RGB, with every way of being broken turned into one error."""

from __future__ import annotations

import functools
import io
import warnings

from PIL import Image, ImageFile, UnidentifiedImageError

from xmatch.data import files
from xmatch.data.packed_images import MAX_ENCODED_BYTES, read_packed, split_packed
from xmatch.data.stores import StoreError
from xmatch.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest image decoded, in pixels; a larger one is refused before its pixels are made."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")
"""What Pillow may take for an image. Left out: what starts a program (EPS) or holds an image of another size (ICO)."""

TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of TIFF."""


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
        StoreError: an object store refused it or did not answer, which is no fault of the image.
    """
    where = repr(source) if isinstance(source, str) else f"image of {len(source)} bytes"
    try:
        data = _read(source) if isinstance(source, str) else source
    except StoreError:
        raise
    except InputError as error:
        raise UnreadableImage(str(error)) from error
    if not data:
        raise UnreadableImage(f"{where} is empty")
    if len(data) > MAX_ENCODED_BYTES:
        raise UnreadableImage(f"{where} has more than the {MAX_ENCODED_BYTES:,} bytes allowed")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must not pass as whole ones"
    try:
        _require_size(_webp_size(data), max_pixels, where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats())
        _require_size(image.size, max_pixels, where)
        _require_size(_tile(image), max_pixels, where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # palette transparency, odd EXIF: the pixels are whole
            if image.mode == "RGB":
                image.load()  # `convert` would hold the pixels twice
                return image
            return image.convert("RGB")
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address, other in every run
        raise UnreadableImage(f"{where} is no image of a known format") from error
    except (OSError, ValueError, SyntaxError, MemoryError, OverflowError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{where} cannot be decoded: {error}") from error


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _require_size(size: tuple[int, int], max_pixels: int, where: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UnreadableImage(f"{where} has {width} x {height} pixels, more than {max_pixels:,}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the head of a WebP (RFC 9649), whose pixels Pillow makes room for when it opens it.

    (0, 0) for anything else.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _tile(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, which are decoded whole however small the image is."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _read(place: str) -> bytes:
    packed = split_packed(place)
    return read_packed(*packed) if packed else files.read_bytes(place, MAX_ENCODED_BYTES)
