"""Why candidates moved, and the page that says so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_images
from small_reranking import random_case, slots_of

from alignment.entities.entity_tables import Box
from alignment.rerank.entity_guided import entity_evidence, guided_lists
from alignment.rerank.explanation import changed_queries, entity_shares, explain
from alignment.rerank.figures import list_ranks
from alignment.rerank.page import PageMaker, render_rerank, rerank_page
from alignment.rerank.pipeline import Vectors, evidence_of, pool_depths, pools_of, rerank
from alignment.rerank.settings import RerankSettings
from xmatch.data.captions import CaptionSet

SETTINGS = RerankSettings(slots=3)
OWNER = np.repeat(np.arange(6), 2)


def world(seed: int = 0) -> tuple[Vectors, list]:
    images, texts, prompts, masks, rng = random_case(seed, captions=12)
    vectors = Vectors(images, texts, slots_of(prompts, masks, rng.integers(0, 4, 12)))
    pools = pools_of(vectors, pool_depths(SETTINGS, 6))
    ids = {"t2i": [""] * 6, "i2t": [""] * 12}
    return vectors, rerank(pools, evidence_of(vectors, pools, SETTINGS), SETTINGS, ids, 6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["t2i", "i2t"]))
def test_shares_add_up_to_the_final_score(seed: int, way) -> None:
    images, texts, prompts, masks, rng = random_case(seed)
    vectors = Vectors(images, texts, slots_of(prompts, masks, rng.integers(0, 4, 8)))
    config = dataclasses.replace(SETTINGS.of(way).egr, mask_weight=0.3, prompt_weight=0.2)
    pool = pools_of(vectors, {"t2i": 6, "i2t": 8})[way]
    found = guided_lists(way, entity_evidence(way, pool, images, vectors.slots), config, 4)
    for query, rows in enumerate(found.lists.rows.tolist()):
        for place, row in enumerate(rows):
            caption, image = (query, row) if way == "t2i" else (row, query)
            similarity = float(found.similarities[query, place])
            own, entities = entity_shares(way, caption, image, similarity, vectors, config)
            total = own + sum(one.share for one in entities)
            assert total == pytest.approx(float(found.lists.scores[query, place]), abs=1e-5)
            assert len(entities) == vectors.slots.counts[caption]


@pytest.mark.parametrize("way", ["t2i", "i2t"])
def test_places_are_those_of_the_lists(way) -> None:
    vectors, stages = world()
    for query in range(12 if way == "t2i" else 6):
        found = explain(way, query, stages, vectors, SETTINGS, OWNER, 4)
        last, first = (stages[at].lists[way].rows[query].tolist() for at in (-1, 0))
        assert [one.row for one in found.moved][:4] == last[:4]
        assert {one.row for one in found.moved} == {*last[:4], *first[:4]}
        for one in found.moved:
            assert one.before == (first.index(one.row) + 1 if one.row in first else None)
            assert one.after == (last.index(one.row) + 1 if one.row in last else None)
            other = stages[1].lists["i2t" if way == "t2i" else "t2i"].rows[one.row].tolist()
            assert one.reverse == (other.index(query) + 1 if query in other else None)
        rank = int(list_ranks(way, stages[-1].lists[way], OWNER)[query])
        assert found.rank_after == (rank if rank <= len(last) else None)


def test_the_largest_changes_come_first() -> None:
    _, stages = world(7)
    ranks = [list_ranks("t2i", stages[at].lists["t2i"], OWNER) for at in (0, -1)]
    rise = ranks[0] - ranks[1]
    rose, fell = changed_queries("t2i", stages, OWNER, 3)
    assert rose and fell
    assert [rise[row] for row in rose] == sorted((one for one in rise if one > 0), reverse=True)[:3]
    assert [rise[row] for row in fell] == sorted(one for one in rise if one < 0)[:3]


def html_of(tmp_path: Path, vectors: Vectors, stages: list) -> str:
    folder = make_images(tmp_path, 5)
    paths = [f"{folder}/{letter}.jpg" for letter in "abcde"] + [""]
    ids = [f"img<{row}>" for row in range(6)]
    gallery = CaptionSet(
        ids, paths, [f"a <b>bold</b> dog {row}" for row in range(12)], [f"c{row}" for row in range(12)], OWNER
    )
    phrases = [["a <i>dog", "the & ball", "grass"][: int(count)] for count in vectors.slots.counts]
    boxes = {one: [Box(one, "a <i>dog", "grounding", 0.25, 0.5, 0.75, 1.0, 0.875)] for one in ids}
    maker = PageMaker(gallery, vectors.slots, phrases, boxes)
    queries = [explain("t2i", row, stages, vectors, SETTINGS, OWNER, 4) for row in range(12)]
    images = [explain("i2t", row, stages, vectors, SETTINGS, OWNER, 4) for row in range(6)]
    sections = [("Text & image", queries), ("Images", images), ("None", [])]
    return render_rerank(rerank_page(sections, maker, title="Moved & <why>", figures=[("R@1", "50.0")]))


def test_everything_is_shown_and_nothing_is_markup(tmp_path: Path) -> None:
    vectors, stages = world()
    html = html_of(tmp_path, vectors, stages)
    for text in (
        "Moved &amp; &lt;why&gt;",
        "Text &amp; image",
        "No query of this kind",
        "the &amp; ball",
        "img&lt;5&gt;",
    ):
        assert text in html
    assert "<b>bold" not in html and "<i>dog" not in html and "http" not in html
    assert html.count("data:image/webp;base64,") == 5
    assert 'x="25.00" y="50.00" width="50.00" height="50.00"><title>a &lt;i&gt;dog 0.88</title>' in html
    assert "Its own list holds the query at place" in html
    moves = re.findall(r'<span class="move">([^<]*)</span>', html)
    assert any("→" in one for one in moves)
    found = explain("t2i", 0, stages, vectors, SETTINGS, OWNER, 4).moved[0]
    for entity in found.entities:
        assert f"<td>{entity.prompt:.3f}</td>" in html
        assert f"{found.similarity - entity.masked:+.3f}</td><td>{entity.share:+.3f}</td>" in html


def test_lists_alone_make_a_page_too(tmp_path: Path) -> None:
    _, stages = world()
    lists = [stages[0], stages[-1]]
    found = explain("t2i", 0, lists, None, SETTINGS, OWNER, 3)
    assert all(one.own_share is None and not one.entities for one in found.moved)
    gallery = CaptionSet([*"abcdef"], [""] * 6, ["text"] * 12, [f"c{row}" for row in range(12)], OWNER)
    html = render_rerank(rerank_page([("Lists", [found])], PageMaker(gallery, None, [], {}), title="t", figures=[]))
    assert "Entities: place" not in html and "c0" in html
