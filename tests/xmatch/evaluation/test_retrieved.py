from __future__ import annotations

import numpy as np
import pytest
from small_gallery import small_embeddings, small_gallery

from xmatch.evaluation.measures import ConfidenceConfig, Request, measure_folds, measure_whole
from xmatch.evaluation.members import Member
from xmatch.evaluation.ranks import MISSED
from xmatch.evaluation.results import write_results
from xmatch.evaluation.retrieved import RETRIEVED_SCHEMA, joined_embeddings, retrieved_table
from xmatch.evaluation.similarities import EmbeddingSimilarities, MatrixSimilarities

GALLERY = small_gallery()


def member(seed: int) -> Member:
    pair = small_embeddings(seed=seed)
    return Member("embeddings", str(seed), EmbeddingSimilarities(*pair), pair, {})


def request(*seeds: int) -> Request:
    return Request(GALLERY, [member(seed) for seed in seeds], ConfidenceConfig(resamples=5))


@pytest.mark.parametrize("measure", [measure_whole, measure_folds])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_lists_give_the_ranks(measure, seeds) -> None:
    asked = request(*seeds)
    measured = measure(asked)
    k = 7
    table = retrieved_table(asked, measured.parts, k)
    assert table.schema == RETRIEVED_SCHEMA
    rows = table.to_pylist()
    for direction, ids in (("i2t", GALLERY.image_ids), ("t2i", GALLERY.caption_ids)):
        first: dict[str, int] = {}
        for row in rows:
            if row["direction"] == direction and row["is_match"]:
                first[row["query_id"]] = min(first.get(row["query_id"], MISSED), row["rank"])
        ranks = np.concatenate([getattr(part, direction).ranks for part in measured.parts])
        assert {i: r for i, r in zip(ids, ranks.tolist()) if r <= k} == {i: r for i, r in first.items() if r <= k}
    each = [row for row in rows if row["query_id"] == GALLERY.caption_ids[-1]]
    assert [row["rank"] for row in each] == list(range(1, len(each) + 1))
    assert [row["score"] for row in each] == sorted((row["score"] for row in each), reverse=True)


def test_an_ensemble_is_searched_by_its_mean_score() -> None:
    asked = request(0, 1)
    images, texts = joined_embeddings(asked)
    expected = asked.across.block(slice(0, len(images)), slice(0, len(texts)))
    np.testing.assert_allclose(images @ texts.T, expected, atol=1e-6)


def test_a_saved_matrix_has_nothing_to_search(tmp_path) -> None:
    images, texts = small_embeddings()
    matrix = Member("similarity", "m", MatrixSimilarities(images @ texts.T), None, {})
    asked = Request(GALLERY, [member(0), matrix], ConfidenceConfig(resamples=5))
    measured = measure_whole(asked)
    assert retrieved_table(asked, measured.parts, 3) is None
    written = write_results(str(tmp_path), asked, measured, {}, title="t", worst=0, top_k=3)
    assert "retrieved, top 3" not in dict(written)


def test_the_list_is_written_where_it_is_asked_for(tmp_path) -> None:
    asked = request(0)
    written = write_results(str(tmp_path), asked, measure_whole(asked), {}, title="t", worst=0, top_k=3)
    assert dict(written)["retrieved, top 3"] == str(tmp_path / "retrieved.parquet")
    assert (tmp_path / "retrieved.parquet").exists()
