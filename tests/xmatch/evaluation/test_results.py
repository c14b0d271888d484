from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from small_gallery import small_embeddings, small_gallery, write_cxc

from xmatch.evaluation.measures import ConfidenceConfig, Request, measure_cxc, measure_folds
from xmatch.evaluation.members import Member
from xmatch.evaluation.report import RANK_SCHEMA
from xmatch.evaluation.results import ranks_table, write_results
from xmatch.evaluation.similarities import EmbeddingSimilarities

GALLERY = small_gallery()
PAIR = small_embeddings()
MEMBER = Member("embeddings", "x", EmbeddingSimilarities(*PAIR), PAIR, {})


def request(**places: str) -> Request:
    return Request(GALLERY, [MEMBER], ConfidenceConfig(resamples=10), **places)


def test_everything_is_written_and_the_ranks_are_the_figures(tmp_path: Path) -> None:
    measured = measure_folds(request())
    rows = write_results(str(tmp_path), request(), measured, {"figures": measured.figures}, title="t", worst=2)
    assert {name for name, _ in rows} == {"figures", "ranks", "plot", "worst queries"}
    assert all(Path(place).exists() for _, place in rows)
    table = pq.read_table(tmp_path / "ranks.parquet")
    assert table.schema == RANK_SCHEMA
    rows = [row for row in table.to_pylist() if row["task"] == "t2i"]
    assert [row["query_id"] for row in rows] == GALLERY.caption_ids
    assert [row["match_id"] for row in rows] == [GALLERY.image_ids[owner] for owner in GALLERY.caption_image]
    assert (
        100 * sum(row["rank"] == 1 for row in rows) / 50
        == json.loads((tmp_path / "retrieval.json").read_text())["figures"]["t2i_recall_at_1"]
    )
    assert {row["fold"] for row in rows} == set(range(5))


def test_no_page_is_asked_for_and_none_is_written(tmp_path: Path) -> None:
    write_results(str(tmp_path), request(), measure_folds(request()), {}, title="t", worst=0)
    assert not (tmp_path / "worst.html").exists()


def test_queries_without_a_match_have_no_rank(tmp_path: Path) -> None:
    rated = write_cxc(tmp_path, GALLERY)
    lines = (tmp_path / "sits_test.csv").read_text().splitlines()
    (tmp_path / "sits_test.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")  # caption 1001 has none
    measured = measure_cxc(request(cxc=rated))
    rows = ranks_table(request(cxc=rated), measured).to_pylist()
    without = [row for row in rows if row["query_id"] == "1001" and row["task"] == "t2i"]
    assert [(row["rank"], row["match_id"]) for row in without] == [(None, None)] * 2
    assert {row["convention"] for row in rows} == {"vse_infty", "eccv_caption"}
    write_results(str(tmp_path / "o"), request(cxc=rated), measured, {}, title="t", worst=3)
