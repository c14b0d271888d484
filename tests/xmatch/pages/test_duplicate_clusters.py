from __future__ import annotations

from xmatch.pages.duplicate_clusters import MOST_PHOTOS, ShownCluster, clusters_page
from xmatch.pages.render import render


def test_clusters_are_shown_with_their_photos(image_folder: str) -> None:
    names = [f"s/<{row}>" for row in range(9)]
    paths = [f"{image_folder}/{letter}.jpg" for letter in "abcdefgh"] + [""]
    clusters = [
        ShownCluster(range(8), [1.0, *[0.9] * 7], 1200, 0.25),
        ShownCluster([8, 0], [1.0, 0.97], 2, 0.97),
    ]
    page = clusters_page(clusters, names, paths, [("rows", "9")])
    assert page is not None
    html = render(page)
    assert "1,200 images, s/&lt;0&gt; first. Least alike: 0.250." in html
    assert [len(card.matches) for card in page.sections[0].cards] == [MOST_PHOTOS, 1]  # s/8 has no photo
    assert len(page.photos) == MOST_PHOTOS


def test_without_photos_there_is_no_page(tmp_path) -> None:
    cluster = ShownCluster([0, 1], [1.0, 1.0], 2, 1.0)
    assert clusters_page([cluster], ["a", "b"], ["", str(tmp_path / "absent.jpg")], []) is None
