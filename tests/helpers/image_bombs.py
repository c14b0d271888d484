"""Images that say or hold more than they should, and what decoding one costs: python image_bombs.py prints it.

Each is decoded in this process; Linux tells the largest resident set since it was last asked to forget.
"""

from __future__ import annotations

import ctypes
import functools
import io
import json
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from xmatch.data.decode import UnreadableImage, decode_rgb

LARGE = 1 << 28


@functools.cache
def zeros(count: int) -> bytes:
    """`count` zero bytes, deflated a thousandfold."""
    deflater, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [deflater.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, deflater.compress(bytes(count % (1 << 20))), deflater.flush()])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, before: bytes = b"", rows: bytes = b"", after: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", rows or zeros(25 * 8)) + after + chunk(b"IEND", b"")


def tiff(data: bytes, **tags: int) -> bytes:
    """A grey TIFF of 64 x 64 pixels in one strip or tile; -1 stands for where the data begin."""
    numbers = {"width": 256, "height": 257, "bits": 258, "form": 259, "grey": 262, "strip": 273, "samples": 277}
    numbers |= {"rows": 278, "strip_bytes": 279, "tile_width": 322, "tile_length": 323, "tile": 324, "tile_bytes": 325}
    entries = {"width": 64, "height": 64, "bits": 8, "grey": 1, "samples": 1} | tags
    start = 8 + 2 + 12 * len(entries) + 4
    found = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for name in sorted(entries, key=numbers.__getitem__):
        found += struct.pack("<HHII", numbers[name], 4, 1, start if entries[name] == -1 else entries[name])
    return found + struct.pack("<I", 0) + data


def frames(form: str, count: int) -> bytes:
    sink, images = io.BytesIO(), [Image.new("L", (64, 64), number % 256) for number in range(count)]
    images[0].save(sink, form, save_all=True, append_images=images[1:])
    return sink.getvalue()


def plain(form: str, side: int, mode: str = "L") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (side, side)).save(sink, form)
    return sink.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 2^62 pixels": lambda: png(2**31 - 1, 2**31 - 1),
    "png of 144 megapixels": lambda: plain("PNG", 12_000),
    "jpeg of 144 megapixels": lambda: plain("JPEG", 12_000),
    "webp of 144 megapixels": lambda: plain("WEBP", 12_000, "RGB"),
    "png with 256 MiB of deflated text before its pixels": lambda: png(
        8, 8, before=chunk(b"zTXt", b"a\0\0" + zeros(LARGE))
    ),
    "png with 256 MiB of deflated text behind them": lambda: png(
        8, 8, after=chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(LARGE))
    ),
    "png with a colour profile of 256 MiB": lambda: png(8, 8, before=chunk(b"iCCP", b"a\0\0" + zeros(LARGE))),
    "gif whose frame is larger than the picture": lambda: (
        b"GIF89a" + struct.pack("<HHBBBBHHHHB", 9, 9, 0, 0, 0, 0x2C, 0, 0, 65535, 65535, 0) + b"\2\1\0\0;"
    ),
    "tiff whose tile is larger than the picture": lambda: tiff(
        zeros(16384**2), form=8, tile_width=16384, tile_length=16384, tile=-1, tile_bytes=len(zeros(16384**2))
    ),
    "bmp without its 99 megapixels": lambda: (
        b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 9999, 9999, 1, 24, *[0] * 6)
    ),
    "icon, which may hold a picture of any size": lambda: plain("ICO", 64),
    "postscript, which is a program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}
"""Refused, each for little memory."""
HARMLESS: dict[str, Callable[[], bytes]] = {
    "png with 256 MiB behind its rows": lambda: png(8, 8, rows=zeros(LARGE)),
    "gif of 2,000 frames": lambda: frames("GIF", 2000),
    "png of 300 frames": lambda: frames("PNG", 300),
    "tiff of 500 frames": lambda: frames("TIFF", 500),
    "tiff whose strip says 4 GiB": lambda: tiff(bytes(4096), form=1, strip=-1, rows=2**32 - 1, strip_bytes=2**32 - 16),
}
"""Decoded, the first picture alone, for little memory."""
LARGEST: dict[str, Callable[[], bytes]] = {
    "png of 99.98 megapixels": lambda: plain("PNG", 9_999),
    "jpeg of 99.98 megapixels": lambda: plain("JPEG", 9_999, "RGB"),
}
"""Decoded, for what its pixels take."""


def largest_set() -> int:
    """Bytes of this process's largest resident set since it was last forgotten."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def cost(data: bytes) -> tuple[str, int]:
    """Why an image is refused ("": it is not), and the bytes that deciding or decoding it took beside its own."""
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is used again, unseen
    with open("/proc/self/clear_refs", "w", encoding="ascii") as forget:
        forget.write("5")
    before = largest_set()
    try:
        decode_rgb(data)
        reason = ""
    except UnreadableImage as error:
        reason = str(error)
    return reason, largest_set() - before


if __name__ == "__main__":
    decode_rgb(plain("PNG", 8))  # what Pillow loads once
    decode_rgb(plain("TIFF", 8))
    print(json.dumps({name: cost(make()) for name, make in (BOMBS | HARMLESS | LARGEST).items()}))
