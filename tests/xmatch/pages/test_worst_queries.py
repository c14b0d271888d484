from __future__ import annotations

from pathlib import Path

from small_models import make_images

from xmatch.pages.photos import PhotoBook
from xmatch.pages.worst_queries import Direction, Failure, Item, WorstPage, render_worst


def page(photos=()) -> WorstPage:
    image = Item("img-7", photo=0 if photos else None)
    caption = Item("c-1", "a <b>bold</b> dog", None, 0.5, True)
    wrong = Item("c-2", "a cat", None, 0.75)
    found = Item("img-9", "", None, 0.25)
    return WorstPage(
        "Worst & wrong",
        "lead",
        [("rsum", "300.0")],
        [
            Direction("Images", "some", [Failure(image, 1234, 25000, caption, [wrong, caption])]),
            Direction("Captions", "some", [Failure(caption, 3, 5000, image, [found, image])]),
            Direction("None", "", []),
        ],
        photos,
    )


def test_everything_is_shown_and_nothing_is_markup() -> None:
    html = render_worst(page())
    for text in (
        "rank 1,234",
        "of 25,000",
        "0.750",
        "img-9",
        "No query of this direction was missed",
        "Worst &amp; wrong",
    ):
        assert text in html
    assert "<b>bold" not in html
    assert "http" not in html


def test_photos_are_read_once_and_unreadable_ones_are_shown_by_id(tmp_path: Path) -> None:
    folder = make_images(tmp_path, 2)
    book = PhotoBook(["a", "b", "c", "d"], [f"{folder}/a.jpg", f"{folder}/b.jpg", f"{folder}/gone.jpg", ""])
    assert [book.number(row) for row in (1, 2, 0, 3, 1)] == [0, None, 1, None, 0]
    assert [photo.name for photo in book.photos] == ["b", "a"]
    html = render_worst(page(book.photos))
    assert html.count("data:image/webp;base64,") == 2
