from __future__ import annotations

from pathlib import Path

import pytest
from small_models import make_images

from xmatch.pages.photos import PhotoBook, thumbnail


@pytest.mark.parametrize(("crop", "aspect"), [("square", 1.0), ("none", 48 / 40)])
def test_photos_are_cut_or_whole_and_read_once(tmp_path: Path, crop: str, aspect: float) -> None:
    folder = make_images(tmp_path, 2)
    found = thumbnail(f"{folder}/a.jpg", crop)
    assert found and found.data_uri.startswith("data:image/webp;base64,")
    assert found.aspect == pytest.approx(aspect)
    book = PhotoBook(["a", "b", "c"], [f"{folder}/a.jpg", f"{folder}/gone.jpg", ""], crop)
    assert [book.number(row) for row in (0, 1, 2, 0)] == [0, None, None, 0]
    (tmp_path / "a.jpg").unlink()
    assert book.number(0) == 0
    assert [(photo.name, photo.aspect) for photo in book.photos] == [("a", pytest.approx(aspect))]


def test_an_unreadable_photo_has_no_thumbnail(tmp_path: Path) -> None:
    assert thumbnail(b"not an image") is None
    assert thumbnail(f"{tmp_path}/gone.jpg") is None
