from __future__ import annotations

import re

from vokenize.page import Line, PageConfig, build_page
from xmatch.pages.render import render

LINES = [
    Line("a <b>cat</b>", [(0, 1, 0, 0.2), (5, 8, 1, 0.9)], [(1, 0.9), (0, 0.1)]),
    Line("tax\treturn", [(0, 3, 0, 0.1), (4, 10, 0, 0.2)], [(0, 0.3)]),
]


def made(image_folder: str, confident: float = 0.5):
    uris = [f"{image_folder}/a.jpg", f"{image_folder}/b.jpg", f"{image_folder}/c.jpg"]
    credits = {"a.jpg": ("CC BY, Ann", "https://example.org/a")}
    config = PageConfig(confident_score=confident)
    return build_page(LINES, uris, ["s/a", "s/b", "s/c"], [("lines", "2")], config, credits)


def test_confident_sentences_come_first_with_their_share(image_folder: str) -> None:
    page = made(image_folder)
    first, last = page.sections[0], page.sections[-1]
    assert "1 of 2 sentences (50%)" in first.lead
    assert [match.score for match in first.cards[0].matches] == [0.9, 0.1]
    assert len(last.cards) == 1
    assert sum(len(section.cards) for section in page.sections) == 2


def test_text_is_kept_escaped_and_every_score_shown(image_folder: str) -> None:
    page = made(image_folder)
    assert "".join(token.text for token in page.sections[0].cards[0].tokens) == "a <b>cat</b>"
    html = render(page)
    assert "<b>cat" not in html
    assert "&lt;b&gt;" in html
    assert {"0.90", "0.10", "0.30", "0.20"} <= set(re.findall(r"\d\.\d\d", html))


def test_each_used_photo_is_embedded_once_and_credited(image_folder: str) -> None:
    html = render(made(image_folder))
    assert html.count("data:image/webp;base64,") == 2
    assert "CC BY, Ann" in html
    assert not re.search(r'(src|href)="(?!https://example\.org)', html)


def test_an_image_that_is_gone_leaves_an_empty_place(image_folder: str) -> None:
    page = build_page(LINES, ["/no/a.jpg", "/no/b.jpg"], ["s/a", "s/b"], [], PageConfig(), {})
    assert {photo.data_uri for photo in page.photos} == {"data:,"}
