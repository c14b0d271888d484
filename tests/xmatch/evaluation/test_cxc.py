from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xmatch.errors import InputError
from xmatch.evaluation.cxc import (
    Gallery,
    cxc_correlations,
    cxc_recalls,
    cxc_recalls_of_embeddings,
    positives_from_annotations,
    positives_from_csvs,
    read_annotations,
    read_positives,
    read_rated_pairs,
)
from xmatch.evaluation.ranks import MISSED
from xmatch.evaluation.similarities import EmbeddingSimilarities

TOY = json.loads((Path(__file__).parents[2] / "golden" / "cxc_toy.json").read_text())
IMAGES, TEXTS = (np.array(TOY[name], np.float32) for name in ("image_emb", "caption_emb"))
TOY_GALLERY = Gallery(
    np.array(TOY["image_ids"], np.int64), np.array(TOY["caption_ids"], np.int64), np.repeat(np.arange(6), 5)
)
GALLERY = Gallery(np.array([42, 7]), np.array([10, 11, 20, 21]), np.array([0, 0, 1, 1]))
HEADS = {"sits": "caption,image", "sis": "image1,image2", "sts": "caption1,caption2"}


def caption(number: int) -> str:
    return f"COCO_val2014:sentid:{number}"


def image(number: int) -> str:
    return f"COCO_val2014_{number:012}.jpg"


def write(folder: Path, kind: str, rows: list[tuple[str, str, object]]) -> str:
    lines = [f"{HEADS[kind]},agg_score,sampling_method", *(f"{a},{b},{score},any" for a, b, score in rows)]
    path = folder / f"{kind}_test.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def csvs(tmp_path: Path) -> str:
    pairs = [(10, 42, 5.0), (11, 42, 2.9), (20, 7, 3.0), (21, 7, 4), (20, 42, 3.1), (99, 42, 5), (10, 99, 5)]
    write(tmp_path, "sits", [(caption(c), image(i), score) for c, i, score in pairs])
    write(tmp_path, "sis", [(image(42), image(7), 2.5), (image(7), image(42), 2.4), (image(7), image(99), 5)])
    write(tmp_path, "sts", [(caption(10), caption(20), 3.0), (caption(11), caption(21), 2.99)])
    return str(tmp_path)


def test_positives_follow_the_thresholds_and_drop_what_is_not_in_the_gallery(csvs: str) -> None:
    found = positives_from_csvs(csvs, GALLERY)
    assert (found.i2t.candidates.tolist(), found.i2t.counts.tolist()) == ([0, 2, 2, 3], [2, 2])
    assert (found.t2i.candidates.tolist(), found.t2i.counts.tolist()) == ([0, 0, 1, 1], [1, 0, 2, 1])
    assert (found.t2t.candidates.tolist(), found.t2t.counts.tolist()) == ([1, 2, 0, 0, 3, 2], [2, 1, 2, 1])
    assert (found.i2i.candidates.tolist(), found.i2i.counts.tolist()) == ([1, 0], [1, 1])


def test_the_conventions_differ_in_queries_without_a_match_and_in_the_own_match(csvs: str) -> None:
    positives = positives_from_csvs(csvs, GALLERY)
    images = np.array([[1, 0], [-0.6, 0.8]], np.float32)  # their product is negative: below the zeroed diagonal
    texts = np.array([[1, 0], [1, 0], [-0.6, 0.8], [-0.6, 0.8]], np.float32)
    vse, counted = cxc_recalls_of_embeddings(images, texts, positives, "vse_infty")
    eccv, _ = cxc_recalls_of_embeddings(images, texts, positives, "eccv_caption")
    assert (vse["t2i_queries"], eccv["t2i_queries"]) == (4, 3)
    assert (vse["t2i_recall_at_1"], eccv["t2i_recall_at_1"]) == (75, 100)
    assert counted["t2i"].ranks.tolist() == [1, MISSED, 1, 1]
    assert (vse["i2i_recall_at_1"], eccv["i2i_recall_at_1"]) == (0, 100)
    assert vse["t2t_recall_at_1"] == eccv["t2t_recall_at_1"] == 100


def test_recalls_of_the_original_program() -> None:
    positives = positives_from_annotations(TOY_GALLERY, TOY["cxc_it"], TOY["cxc_i2i"], TOY["cxc_t2t"])
    found, _ = cxc_recalls_of_embeddings(IMAGES, TEXTS, positives, "vse_infty")
    for task in ("t2i", "i2t", "i2i", "t2t"):
        assert [found[f"{task}_recall_at_{k}"] for k in (1, 5, 10)] == pytest.approx(TOY[task], abs=1e-9)


def test_a_folder_of_annotations_gives_the_same(tmp_path: Path) -> None:
    for name in ("it", "i2i", "t2t"):
        (tmp_path / f"cxc_{name}.json").write_text(json.dumps(TOY[f"cxc_{name}"]))
    (tmp_path / "testall_ids.txt").write_text("".join(f"{i}\n" * 5 for i in TOY["image_ids"]))
    (tmp_path / "testall_capids.txt").write_text("".join(f"{c}\n" for c in TOY["caption_ids"]))
    gallery, positives = read_annotations(str(tmp_path))
    expected = positives_from_annotations(TOY_GALLERY, TOY["cxc_it"], TOY["cxc_i2i"], TOY["cxc_t2t"])
    for left, right in zip(gallery, TOY_GALLERY, strict=True):
        assert left.tolist() == right.tolist()
    for task in ("i2t", "t2i", "t2t", "i2i"):
        assert getattr(positives, task).candidates.tolist() == getattr(expected, task).candidates.tolist()
        assert getattr(positives, task).offsets.tolist() == getattr(expected, task).offsets.tolist()
    (tmp_path / "testall_capids.txt").write_text("9000\nx\n")
    with pytest.raises(InputError, match="line 2: 'x'"):
        read_annotations(str(tmp_path))
    (tmp_path / "testall_capids.txt").write_text("9000\n")
    with pytest.raises(InputError, match="30 lines, testall_capids.txt 1"):
        read_annotations(str(tmp_path))


def test_annotations_that_lack_an_item_or_are_malformed_are_named() -> None:
    lacking = {"i2t": TOY["cxc_it"]["i2t"], "t2i": {}}
    with pytest.raises(InputError, match="no entry 9000 in 't2i'"):
        positives_from_annotations(TOY_GALLERY, lacking, {}, {})
    with pytest.raises(InputError, match="cxc_i2i.json', entry 100"):
        positives_from_annotations(TOY_GALLERY, TOY["cxc_it"], {"100": [7]}, {})


def test_correlations_of_a_model_that_knows_the_ratings(csvs: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = Gallery(np.arange(1, 41), np.arange(101, 141), np.arange(40))
    first, second = rng.integers(0, 40, 300), rng.integers(0, 40, 300)
    ratings = 2.5 * (1 + (vectors[first] * vectors[second]).sum(1).clip(-1, 1))
    path = write(tmp_path, "sits", [(caption(101 + a), image(1 + b), r) for a, b, r in zip(first, second, ratings)])
    sits = read_rated_pairs(path, "sits")
    path = write(tmp_path, "sis", [(image(1 + a), image(1 + b), 5 - r) for a, b, r in zip(first, second, ratings)])
    source = EmbeddingSimilarities(vectors, vectors)
    pairs = {"sits": sits, "sis": read_rated_pairs(path, "sis")}
    found = cxc_correlations({"sits": source, "sis": source}, pairs, gallery, samples=20)
    assert found["sits"].mean == pytest.approx(100, abs=0.1)
    assert found["sis"].mean == pytest.approx(-100, abs=0.1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(caption(1), "cat.jpg", 3)], "line 2"),
        ([(caption(1), image(1), 3), ("x", image(1), 3)], "line 3"),
        ([(caption(1), image(1), "high")], "not a rated pair"),
        ([(caption(1), image(1), 7)], "score from 0 to 5"),
        ([(caption(1), image(1), "nan")], "score from 0 to 5"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rated_pairs(write(tmp_path, "sits", rows), "sits")


def test_the_wrong_file_and_repeated_ids_are_named(tmp_path: Path, csvs: str) -> None:
    with pytest.raises(InputError, match=r"no column 'caption1'.*Give CxC's sts_test.csv"):
        read_rated_pairs(f"{csvs}/sits_test.csv", "sts")
    with pytest.raises(InputError, match="id 7 occurs twice"):
        positives_from_csvs(csvs, GALLERY._replace(image_ids=np.array([7, 7])))


def test_a_folder_is_read_by_what_lies_in_it(csvs: str, tmp_path: Path) -> None:
    assert read_positives(csvs, GALLERY).i2t.counts.tolist() == positives_from_csvs(csvs, GALLERY).i2t.counts.tolist()
    folder = tmp_path / "annots"
    folder.mkdir()
    with pytest.raises(InputError, match=r"neither sits_test\.csv"):
        read_positives(str(folder), GALLERY)
    across = {"i2t": {"42": [[10, 5]], "7": [[20, 3]]}, "t2i": {"10": [[42, 5]], "11": [], "20": [[7, 3]], "21": []}}
    for name, content in (("it", across), ("i2i", {"42": [[7, 2.5]]}), ("t2t", {"10": [[20, 3]]})):
        (folder / f"cxc_{name}.json").write_text(json.dumps(content))
    assert read_positives(str(folder), GALLERY).t2i.counts.tolist() == [1, 0, 1, 0]


def test_tasks_within_a_kind_are_left_out_where_there_are_no_scores(csvs: str) -> None:
    across = EmbeddingSimilarities(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    figures, counted = cxc_recalls(across, None, None, positives_from_csvs(csvs, GALLERY))
    assert set(counted) == {"i2t", "t2i"}
    assert not any(name.startswith(("t2t", "i2i")) for name in figures)
