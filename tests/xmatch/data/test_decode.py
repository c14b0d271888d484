from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from xmatch.data.decode import UnreadableImage, decode_rgb


def encoded(mode: str = "RGB", form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (8, 6)).save(sink, form)
    return sink.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert decode_rgb(encoded(mode)).mode == "RGB"


def test_a_truncated_jpeg_is_not_taken_for_a_whole_one(image_folder: str) -> None:
    data = Path(image_folder, "a.jpg").read_bytes()
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"no image at all"])
def test_what_is_no_image_says_so(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode_rgb(data)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UnreadableImage, match="nowhere.jpg"):
        decode_rgb("nowhere.jpg")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnreadableImage, match="more than 40"):
        decode_rgb(encoded(), max_pixels=40)
