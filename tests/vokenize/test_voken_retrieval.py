from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_models import karpathy_json

from vokenize.voken_retrieval import (
    NOT_FOUND,
    CaptionTruth,
    Retrieval,
    TruthConfig,
    first_pieces,
    ranks_of,
    read_truth,
)
from vokenize.voken_runs import Part
from xmatch.errors import InputError


def lxmert(path: Path) -> str:
    entries = [
        {"img_id": "a", "sentf": {"mscoco": ["one cat", "  ", "two\ncats"]}},
        {"img_id": "b", "sentf": {"vg": ["not this"]}},
        {"img_id": "c", "sentf": {"mscoco": ["a dog"]}},
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def part(texts: list[str], first: int = 0) -> Part:
    counts = np.array([len(text.split()) for text in texts])
    return Part("p", first, pa.chunked_array([pa.array(texts)]), counts, np.zeros(counts.sum()), None, counts, None)


def truth(path: str, convention: str = "corrected", ids=("s/c", "s/a"), uris=("x/c.jpg", "y/a.jpg")) -> CaptionTruth:
    return CaptionTruth(read_truth(TruthConfig(path=path)), ids, uris, convention, path)


def test_each_line_has_its_captions_image_and_blank_lines_none(tmp_path: Path) -> None:
    found = truth(lxmert(tmp_path / "c.json"))
    assert found.of(part(["one cat", "  "])).tolist() == [1, -1]
    assert found.of(part(["two cats", "a dog"], 2)).tolist() == [1, 0]
    found.require_all_read()


def test_karpathy_captions_are_read_without_images(tmp_path: Path) -> None:
    path = karpathy_json(tmp_path / "k.json", {"train": ["a.jpg"], "test": ["b.jpg"]})
    assert len(read_truth(TruthConfig(path=path)).captions) == 4
    assert read_truth(TruthConfig(path=path, split="test")).image_ids == ["b"]
    with pytest.raises(InputError, match="no split 'dev'"):
        read_truth(TruthConfig(path=path, split="dev"))


def test_another_corpus_is_named_with_its_first_line(tmp_path: Path) -> None:
    path = lxmert(tmp_path / "c.json")
    with pytest.raises(InputError, match="line 1 of the corpus reads 'a dog', but caption 1 .* reads 'two cats'"):
        truth(path).of(part(["one cat", "a dog"]))
    with pytest.raises(InputError, match="more lines than the 3 captions"):
        truth(path).of(part(["one cat", "two cats", "a dog", "x"]))
    found = truth(path)
    found.of(part(["one cat"]))
    with pytest.raises(InputError, match="ends after caption 1 of the 3"):
        found.require_all_read()


def test_the_original_finds_an_image_by_its_file_in_any_folder(tmp_path: Path) -> None:
    found = truth(lxmert(tmp_path / "c.json"), "original", ("s/1", "s/2", "t/3"), ("x/a.jpg", None, "z/a.jpg"))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.of(part(["one cat"])).tolist() == [0]


def test_ranks_are_of_the_first_hit() -> None:
    vokens = np.array([[0, 1, 2], [2, 1, 0], [1, 2, 3]])
    assert ranks_of(vokens, np.array([5, 6, 5, 7]), np.array([5, 6, 8])).tolist() == [1, 2, NOT_FOUND]


@pytest.mark.parametrize(
    ("convention", "queries", "left_out", "recall", "by_caption"),
    [("corrected", 3, 1, 100 * 2 / 3, 75.0), ("original", 5, 0, 40.0, 50.0)],
)
def test_captions_whose_image_is_not_there(convention, queries, left_out, recall, by_caption) -> None:
    found = Retrieval(1, 2, convention)
    vokens = np.array([[0], [1], [0], [0], [1]])
    found.add(vokens, np.array([2, 2, 0, 1]), np.array([0, 1]), np.array([0, -1, -1, 1]))
    figures = found.figures()
    assert (figures["queries"], figures["captions_without_image"]) == (queries, left_out)
    assert figures["recall_at_1"] == pytest.approx(recall)
    assert figures["recall_at_1_by_caption"] == pytest.approx(by_caption)
    assert "recall_at_5" not in figures


def test_chance_beyond_certainty_is_the_originals_alone() -> None:
    assert Retrieval(10, 8, "corrected").figures()["chance_at_10"] == 100
    assert Retrieval(10, 8, "original").figures()["chance_at_10"] == 125


def test_a_line_of_several_pieces_counts_by_its_first() -> None:
    vokens, per_line = first_pieces(np.array([[4], [5], [6], [7]]), np.array([2, 0, 1, 1]))
    assert (vokens.tolist(), per_line.tolist()) == ([[4], [6], [7]], [1, 0, 1, 1])
