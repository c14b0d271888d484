from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_gallery import small_embeddings, small_gallery
from small_models import make_images

from xmatch.errors import InputError
from xmatch.evaluation.measures import ConfidenceConfig, Request, measure_folds, measure_whole
from xmatch.evaluation.members import Member
from xmatch.evaluation.similarities import EmbeddingSimilarities
from xmatch.evaluation.worst import worst_page, worst_queries
from xmatch.pages.worst_queries import render_worst

GALLERY = small_gallery()
IMAGES, TEXTS = small_embeddings(seed=3)
SOURCE = EmbeddingSimilarities(IMAGES, TEXTS)
REQUEST = Request(GALLERY, [Member("embeddings", "x", SOURCE, None, {})], ConfidenceConfig(resamples=10))


@pytest.mark.parametrize("measure", [measure_whole, measure_folds])
def test_the_worst_are_those_of_greatest_rank_and_what_they_found_is_the_top_of_a_full_sort(measure) -> None:
    parts = measure(REQUEST).parts
    found = worst_queries(SOURCE, parts, count=4, depth=3)
    scores = IMAGES @ TEXTS.T
    for way in ("i2t", "t2i"):
        queries = [query for query in found if query.direction == way]
        ranks = np.concatenate([getattr(part, way).ranks for part in parts])
        assert [query.rank for query in queries] == sorted(ranks[ranks > 1], reverse=True)[:4]
        for query in queries:
            [part] = [
                p
                for p in parts
                if getattr(p, "images" if way == "i2t" else "captions").start
                <= query.query
                < getattr(p, "images" if way == "i2t" else "captions").stop
            ]
            gallery = part.captions if way == "i2t" else part.images
            own = (scores if way == "i2t" else scores.T)[query.query, gallery]
            expected = np.argsort(-own, kind="stable")[:3] + gallery.start
            assert [one.row for one in query.found] == expected.tolist()
            assert query.candidates == gallery.stop - gallery.start
            assert query.match.score == pytest.approx(
                (scores if way == "i2t" else scores.T)[query.query, query.match.row]
            )
            assert all(one.score >= query.match.score for one in query.found[: query.rank - 1])


def test_only_failures_are_shown() -> None:
    eye = np.eye(10, dtype=np.float32)
    perfect = EmbeddingSimilarities(eye, eye[GALLERY.caption_image])
    request = REQUEST._replace(members=[Member("embeddings", "x", perfect, None, {})])
    assert worst_queries(perfect, measure_whole(request).parts, count=5) == []
    assert worst_queries(SOURCE, measure_whole(REQUEST).parts, count=0) == []
    with pytest.raises(InputError, match="depth >= 1"):
        worst_queries(SOURCE, [], count=1, depth=0)


def test_the_page_shows_photographs_where_there_are_some_and_marks_matches_from_their_rank_on(tmp_path: Path) -> None:
    queries = worst_queries(SOURCE, measure_whole(REQUEST).parts, count=6)
    page = worst_page(queries, GALLERY, title="Worst", figures=[("rsum", "300.0")])
    assert not page.photos
    for direction in page.directions:
        for failure in direction.failures:
            for place, item in enumerate(failure.found, 1):
                assert item.is_match == (place == failure.rank) or place > failure.rank
    paths = [f"{make_images(tmp_path, 10)}/{letter}.jpg" for letter in "abcdefghij"]
    paths[0] = str(tmp_path / "gone.jpg")
    shown = worst_page(queries, GALLERY._replace(image_paths=paths), title="Worst", figures=[])
    assert 0 < len(shown.photos) <= 9
    assert [photo.row for photo in shown.photos] == list(range(len(shown.photos)))
    assert "data:image/webp" in render_worst(shown)
