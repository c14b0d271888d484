"""Predictions tables: what is written is read, and what does not fit a split is counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.rerank.candidates import (
    EMPTY,
    PREDICTION_SCHEMA,
    Lists,
    lists_of,
    predictions_table,
    read_predictions,
    search_lists,
)
from xmatch.errors import InputError

GOLDEN = Path(__file__).parents[2] / "golden" / "agree_mvptr"
LISTS = Lists(np.array([[2, 0], [1, EMPTY], [EMPTY, EMPTY]]), np.array([[0.5, 0.25], [1, 0], [0, 0]], np.float32))


def test_the_originals_lists_with_an_exact_tie() -> None:
    case = json.loads((GOLDEN / "agree_topk.json").read_text())
    images, texts = (np.array(case[f"{side}_feats"], np.float32) for side in ("image", "text"))
    found = search_lists(texts, images, case["top_k"]).rows
    assert (found + 100).tolist() == case["text_predictions"]
    assert search_lists(images, texts, case["top_k"]).rows.tolist() == case["image_predictions"]
    assert search_lists(texts, images, 50).rows.shape == (12, 7)


def test_a_table_goes_there_and_back_in_any_order(tmp_path: Path) -> None:
    table = predictions_table(LISTS, ["q", "r", "s"], ["a", "b", "c"], {"similarities": LISTS.scores})
    path = str(tmp_path / "p.parquet")
    pq.write_table(table, path)
    read = read_predictions(path)
    assert read.to_pylist()[0] == {
        "query_id": "q",
        "item_ids": ["c", "a"],
        "scores": [0.5, 0.25],
        "similarities": [0.5, 0.25],
    }
    back = lists_of(read, ["s", "q", "r"], ["a", "b", "c"], path)
    assert back.rows.tolist() == LISTS.rows[[2, 0, 1]].tolist()
    is_there = back.rows != EMPTY
    assert back.scores[is_there].tolist() == [0.5, 0.25, 1.0]


def test_scores_that_are_not_known_are_null_and_nan() -> None:
    unknown = LISTS._replace(scores=np.full((3, 2), np.nan, np.float32))
    table = predictions_table(unknown, ["q", "r", "s"], ["a", "b", "c"])
    assert table.column("scores").null_count == 2
    back = lists_of(table, ["q", "r"], ["a", "b", "c"], "p")
    assert np.isnan(back.scores).all() and back.rows.tolist() == [[2, 0], [1, EMPTY]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": pa.array([1]), "item_ids": [["a"]]}, "'query_id' must be string, got int64. Ids are strings"),
        ({"query_id": ["q"], "item_ids": [[1]]}, r"'item_ids' must be list<.*>, got list<.*int64"),
        ({"query_id": ["q"]}, "'item_ids' must be .*, got no such column"),
        ({"query_id": ["q", "q"], "item_ids": [["a"], ["a"]]}, r"1 queries \('q'\) have more than one list"),
        ({"query_id": [None], "item_ids": [["a"]]}, "'query_id' holds 1 nulls"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path: Path, columns, message: str) -> None:
    path = str(tmp_path / "p.parquet")
    given = {"scores": pa.nulls(len(next(iter(columns.values()))), PREDICTION_SCHEMA.field("scores").type)}
    made = {name: pa.array(values, pa.string()) if values == [None] else values for name, values in columns.items()}
    pq.write_table(pa.table(made | given), path)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_lists_of_another_split_are_refused() -> None:
    table = predictions_table(LISTS, ["q", "r", "s"], ["a", "b", "c"])
    with pytest.raises(InputError, match=r"4 queries \('t', 'u', 'v', …\) of 5 have no list"):
        lists_of(table, ["q", "t", "u", "v", "w"], ["a", "b", "c"], "p")
    with pytest.raises(InputError, match=r"2 candidates \('c', 'b'\) are not in the split, whose 1 are such as 'a'"):
        lists_of(table, ["q", "r"], ["a"], "p")
    short = table.set_column(2, "scores", pa.array([[0.5], [1.0], []], pa.list_(pa.float32())))
    with pytest.raises(InputError, match="'q' has 2 candidates and 1 scores"):
        lists_of(short, ["q"], ["a", "b", "c"], "p")
