from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import image_bombs
import pytest
from PIL import Image

from xmatch.data import decode, packed_images
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


@pytest.fixture(scope="module")
def costs() -> dict[str, tuple[str, int]]:
    """Of every image of the helper: why it is refused, and the bytes that it took, in a process of its own."""
    command = [sys.executable, image_bombs.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", image_bombs.BOMBS)
def test_an_image_that_says_too_much_is_refused_for_little_memory(costs, name: str) -> None:
    reason, memory = costs[name]
    assert reason
    assert memory < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("name", image_bombs.HARMLESS)
def test_of_what_holds_too_much_one_picture_is_decoded(costs, name: str) -> None:
    assert costs[name][0] == ""
    assert costs[name][1] < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("name", image_bombs.LARGEST)
def test_the_largest_images_take_their_pixels_and_no_copy_of_them(costs, name: str) -> None:
    assert costs[name][0] == ""
    assert 350e6 < costs[name][1] < 650e6  # four bytes a pixel, and one more where it was grey


def test_the_pixels_of_an_rgb_image_are_those_of_convert() -> None:
    data = image_bombs.png(8, 8)
    assert decode_rgb(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.jpg", "wb") as sink:
        sink.truncate(10 << 40)
    with pytest.raises(UnreadableImage, match=r"huge\.jpg' has 10,995,116,277,760 bytes, more than the 400,000,000"):
        decode_rgb(str(tmp_path / "huge.jpg"))


def test_encoded_bytes_are_limited_wherever_they_come_from(tmp_path: Path, monkeypatch) -> None:
    for module in (decode, packed_images):
        monkeypatch.setattr(module, "MAX_ENCODED_BYTES", 40)
    (tmp_path / "a.png").write_bytes(encoded())
    for source in (encoded(), str(tmp_path / "a.png")):
        with pytest.raises(UnreadableImage, match="more than the 40"):
            decode_rgb(source)


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(UnreadableImage, match="no regular file"):
            decode_rgb(str(tmp_path / name))


@pytest.mark.parametrize("how", [{"lossless": True}, {"quality": 50}, {"lossless": True, "exif": b"Exif\0\0"}])
def test_the_size_in_the_head_of_a_webp_is_the_images(how: dict) -> None:
    for size in ((1, 1), (300, 7), (129, 1000)):
        sink = io.BytesIO()
        Image.new("RGB", size).save(sink, "WEBP", **how)
        assert decode._webp_size(sink.getvalue()) == size
    assert decode._webp_size(encoded()) == (0, 0)
    assert decode._webp_size(b"RIFF1234WEBP") == (0, 0)


@pytest.mark.parametrize("form", decode.FORMATS)
def test_every_format_is_one_that_pillow_knows(form: str) -> None:
    Image.init()
    assert form in Image.OPEN
