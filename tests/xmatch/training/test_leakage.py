"""What was seen is found again, whatever its spelling; what merely recurs is reported and not refused."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import files
from xmatch.data.caption_forms.common import CaptionSet
from xmatch.errors import InputError
from xmatch.training.leakage import (
    SEEN_SCHEMA,
    caption_hashes,
    overlap,
    photo_hashes,
    read_seen,
    require_disjoint,
    seen_record,
    write_seen,
)


def captioned(images: dict[str, list[str]], folder: Path | None = None) -> CaptionSet:
    """A captioned set; with a folder, the photos are small files there whose content is their id."""
    rows = [(row, text) for row, texts in enumerate(images.values()) for text in texts]
    paths = [""] * len(images)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        paths = [str(folder / f"{name}.jpg") for name in images]
        for name, path in zip(images, paths, strict=True):
            Path(path).write_text(name)
    ids = [str(number) for number in range(len(rows))]
    return CaptionSet(list(images), paths, [t for _, t in rows], ids, np.array([r for r, _ in rows], np.int64))


NAMES = st.sampled_from(["ann", "bob", "cy", "dora", "12", "000000000139", "COCO_val2014_000000000139"])
SETS = st.dictionaries(
    NAMES, st.lists(st.sampled_from(["a dog", "A dog.", "two cats", "snow"]), min_size=1), min_size=1
)


@settings(deadline=None)
@given(SETS)
def test_a_set_overlaps_itself_wholly(images: dict[str, list[str]]) -> None:
    whole = captioned(images)
    found = overlap(seen_record(whole, role="text_pretraining"), whole)
    assert found.images_leaked == found.images_by_captions == found.images == len(images)
    assert found.captions_by_text == found.captions


@settings(deadline=None)
@given(SETS, SETS, SETS)
def test_more_training_data_never_leaks_less(one: dict, other: dict, benchmark: dict) -> None:
    tables = [seen_record(captioned(images), role="text_pretraining") for images in (one, other)]
    alone, both = overlap(tables[0], captioned(benchmark)), overlap(pa.concat_tables(tables), captioned(benchmark))
    for name in ("images_by_id", "captions_by_text", "images_by_captions", "images_leaked"):
        assert getattr(alone, name) <= getattr(both, name)
        assert getattr(both, name) <= both.captions
    assert overlap(SEEN_SCHEMA.empty_table(), captioned(benchmark)).images_leaked == 0


def test_the_file_is_the_same_for_any_order_and_repetition(tmp_path: Path) -> None:
    parts = {name: [f"{name} {i}" for i in range(5)] for name in ("x", "y", "7", "1000092795")}
    tables = [seen_record(captioned({k: v}, tmp_path / "p"), role="train") for k, v in parts.items()]
    write_seen(tables, str(tmp_path / "a.parquet"))
    random.Random(0).shuffle(tables)
    write_seen([*tables, tables[0]], str(tmp_path / "b.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    seen = read_seen(str(tmp_path / "a.parquet"))
    assert seen.schema == SEEN_SCHEMA and len(seen) == 4 * 6
    write_seen([seen], str(tmp_path / "c.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def test_a_record_says_what_it_saw(tmp_path: Path) -> None:
    train = seen_record(captioned({"COCO_val2014_000000000139": ["A dog ."]}, tmp_path / "p"), role="train").to_pylist()
    photo = files.sha256(str(tmp_path / "p" / "COCO_val2014_000000000139.jpg"))
    coco = "COCO_val2014_000000000139"
    words = caption_hashes(["a dog"])[0].as_py()
    assert train == [
        dict(zip(SEEN_SCHEMA.names, ("caption", "train", "0", coco, "coco:139", words))),
        dict(zip(SEEN_SCHEMA.names, ("image", "train", coco, None, "coco:139", photo))),
    ]
    text = seen_record(captioned({"5": ["a dog"]}), role="text_pretraining").to_pylist()
    assert [(row["kind"], row["image_id"], row["key"]) for row in text] == [("caption", "5", None)]


def test_captions_are_compared_by_their_words() -> None:
    same = ["A man's dog, running .", "a man 's dog running", "  A  MAN'S\tdog — running!", "Ａ man's dog running"]
    assert len(set(caption_hashes(same).to_pylist())) == 1
    others = ["a mans dog running", "a man dog", "日本", "日", "🐶", "🐱", "", "naïve", "naive"]
    assert len(set(caption_hashes(others).to_pylist())) == len(others)


@pytest.mark.parametrize(
    ("seen", "asked", "leaks"),
    [
        ("1000092795", "1000092795_571b08cb0e", True),
        ("COCO_val2014_000000391895", "000000391895", True),
        ("12", "12", False),
        ("391895", "36979", False),
    ],
)
def test_ids_match_across_spellings(seen: str, asked: str, leaks: bool) -> None:
    record = seen_record(captioned({seen: ["one thing"]}), role="text_pretraining")
    found = overlap(record, captioned({asked: ["another thing"]}))
    assert (found.images_by_id, found.images_leaked) == (int(leaks), int(leaks))
    assert found.first == ((f"{asked!r} (seen as {seen!r})",) if leaks else ())


def test_photos_are_known_by_their_bytes(tmp_path: Path) -> None:
    record = seen_record(captioned({"ann": ["x"], "bob": ["y"]}, tmp_path / "a"), role="train")
    asked = captioned({"img_1": ["u"], "img_2": ["v"]}, tmp_path / "b")
    assert overlap(record, asked).images_leaked == 0
    Path(asked.image_paths[1]).write_text("bob")
    found = overlap(record, asked)
    assert (found.images_by_id, found.images_by_content, found.images_leaked, found.photos_compared) == (0, 1, 1, 2)
    assert found.first == ("'img_2' (same file as 'bob')",)


def test_photos_that_cannot_be_read_here_have_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("x")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "in.jpg")
    alone, packed = str(tmp_path / "a.jpg"), f"{tmp_path}/t.tar#in.jpg"
    found = photo_hashes([alone, packed, str(tmp_path / "no.jpg"), "", "s3://b/x.jpg", "s3://b/t.tar#x"], 2).to_pylist()
    assert found[0] == found[1] and found[0] is not None and found[2:] == [None] * 4
    assert photo_hashes([alone], 0).to_pylist() == [None]


def test_two_captions_of_one_image_leak_and_stock_captions_do_not() -> None:
    seen = {"1": ["a dog runs", "snow", "one two"], "2": ["a cat", "three"]}
    record = seen_record(captioned(seen), role="text_pretraining")
    asked = {
        "10": ["A dog runs .", "Snow!", "new"],  # two captions of one image
        "11": ["a dog runs", "a cat", "new"],  # one caption each of two images
        "12": ["snow", "Snow.", "new"],  # the same caption twice
        "13": ["three"],  # all of its captions
        "14": ["new"],
    }
    found = overlap(record, captioned(asked))
    assert (found.captions_by_text, found.images_by_captions, found.images_leaked) == (7, 2, 2)
    assert found.first == ("'10' (2 of its 3 captions seen with '1')", "'13' (1 of its 1 captions seen with '2')")


def test_a_leak_is_refused_unless_allowed_and_the_result_carries_it() -> None:
    images = {f"photo {letter}": [f"text of {letter}"] for letter in "abcdefg"}
    found = overlap(seen_record(captioned(images), role="text_pretraining"), captioned(images | {"new": ["new"]}))
    with pytest.raises(InputError, match=r"7 of the 8 images.*'photo a' \(seen as 'photo a'\).*--allow_overlap true"):
        require_disjoint(found, allow=False)
    require_disjoint(found, allow=True)
    assert found.as_dict()["images_leaked"] == 7 and len(found.as_dict()["first"]) == 5
    require_disjoint(overlap(SEEN_SCHEMA.empty_table(), captioned(images)), allow=False)


def test_another_parquet_file_is_no_record(tmp_path: Path) -> None:
    files.write_parquet(str(tmp_path / "x.parquet"), pa.table({"a": [1]}))
    with pytest.raises(InputError, match="no record of training data"):
        read_seen(str(tmp_path / "x.parquet"))


def test_a_set_without_images_or_captions_is_empty() -> None:
    empty = captioned({})
    assert len(seen_record(empty, role="train")) == 0
    assert overlap(seen_record(empty, role="train"), empty).images == 0
