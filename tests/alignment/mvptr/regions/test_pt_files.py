"""The .pt sets of MVPTR: written, read, refused where they are broken; and all files of it by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_regions import same, some_regions

from alignment.mvptr.files import MvptrFiles, convert_mvptr
from alignment.mvptr.phrase_extraction import phrases_by_caption, read_phrases
from alignment.mvptr.regions.geometry import with_geometry
from alignment.mvptr.regions.pt_files import (
    CaptionedImage,
    karpathy_json,
    read_pt_captions,
    read_pt_phrases,
    read_pt_regions,
    write_pt_regions,
)
from alignment.mvptr.regions.table import RegionTable, write_regions
from alignment.mvptr.tensorize import tag_text
from xmatch.data.text_captions import read_text_captions
from xmatch.errors import InputError

CAPTIONS = {"7": ["a dog", "a big dog"], "8": json.dumps(["of"])}
PHRASES = {"7": {0: [("dog",)], "1": ["dog", "dog_big", "man_ride on_dog"]}, "8": [[]], "9": {0: []}}


def write_set(folder: Path, **parts: object) -> Path:
    """A split `test` of two images."""
    features = {key: torch.arange(6.0).reshape(2, 3) + int(key) for key in ("7", "8")}
    labels = {"7": {"class": ["dog", "cat"]}, "8": "man hat dog"}
    every = {"img_frcnn_feats": features, "vg_labels": labels, "captions": CAPTIONS, "sg": PHRASES, **parts}
    for name, content in every.items():
        torch.save(content, folder / f"test_{name}.pt")
    return folder


def paths(folder: Path) -> tuple[str, str]:
    return str(folder / "test_img_frcnn_feats.pt"), str(folder / "test_vg_labels.pt")


def test_regions_are_read_as_they_were_written(tmp_path: Path) -> None:
    images = [with_geometry(image) for image in some_regions()]
    assert write_pt_regions(str(tmp_path), "test", images) == 3
    for found, image in zip(read_pt_regions(*paths(tmp_path)), images, strict=True):
        assert same(found, image, but=("boxes", "width", "height", "scores", "labels"))
        np.testing.assert_allclose(found.boxes * [100, 90, 100, 90], image.boxes, atol=1e-4)


def test_a_text_for_the_whole_image_stays_its_text(tmp_path: Path) -> None:
    first, second = read_pt_regions(*paths(write_set(tmp_path)))
    assert first.tags == ("dog", "cat") and len(first.boxes) == 0
    assert second.tags == ("man hat dog", "") and tag_text(second.tags) == "man hat dog"


def test_captions_and_phrases_become_ours(tmp_path: Path) -> None:
    captions = read_pt_captions(str(write_set(tmp_path) / "test_captions.pt"))
    assert captions == [CaptionedImage("7", ("a dog", "a big dog")), CaptionedImage("8", ("of",))]
    table = read_pt_phrases(str(tmp_path / "test_sg.pt"), captions)
    assert table.column("phrases").to_pylist() == [[["dog"]], [["dog"], ["dog", "big"], ["man", "ride on", "dog"]], []]
    assert table.column("caption_id").to_pylist() == ["0", "1", "2"]
    assert [len(image["sentences"]) for image in karpathy_json(captions, "test")["images"]] == [2, 1]


def test_a_set_goes_to_ours_and_back(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    given = write_set(tmp_path / "given")
    ours, back = str(tmp_path / "ours"), str(tmp_path / "back")
    settings = MvptrFiles(file="flickr", phrases=str(given / "test_sg.pt"))
    rows = dict(convert_mvptr("import", str(given), ours, settings))
    assert rows["captions"] == "3" and rows["captions with phrases"] == "3"
    captions = read_text_captions(f"{ours}/captions.json", "test")
    assert (list(captions.image_ids), captions.captions[1]) == (["7", "8"], "a big dog")
    assert set(phrases_by_caption(f"{ours}/phrases")) == set(captions.caption_ids)
    RegionTable(ours).require(captions.image_ids, 3)
    convert_mvptr("export", ours, back, MvptrFiles(file="flickr"))
    again = MvptrFiles(file="flickr", phrases=f"{back}/test_sg.pt")
    convert_mvptr("import", back, str(tmp_path / "twice"), again)
    assert read_phrases(str(tmp_path / "twice/phrases")).equals(read_phrases(f"{ours}/phrases"))
    for name in ("captions.json", "shards/part-00000.arrow"):
        assert (tmp_path / "twice" / name).read_bytes() == Path(ours, name).read_bytes()


@pytest.mark.parametrize("file", ["tsv", "vinvl", "maria"])
def test_every_tsv_goes_out_and_comes_back(tmp_path: Path, file: str) -> None:
    images = some_regions(regions=36)
    images = images if file == "maria" else [with_geometry(image) for image in images]
    write_regions(str(tmp_path / "r.arrow"), images)
    settings = MvptrFiles(file=file)
    assert convert_mvptr("export", str(tmp_path / "r.arrow"), str(tmp_path / "out"), settings)[0][1].startswith("3, ")
    place = {"tsv": "predictions.tsv", "vinvl": "", "maria": settings.name}[file]
    convert_mvptr("import", str(tmp_path / "out" / place), str(tmp_path / "again"), settings)
    lost = {"tsv": ("boxes", "width", "height", "scores", "labels"), "vinvl": ("labels",), "maria": ()}[file]
    for found, image in zip(RegionTable(str(tmp_path / "again")), images, strict=True):
        assert same(found, image, but=lost)
        shares = [one.boxes / ([one.width, one.height] * 2) for one in (found, image)]
        np.testing.assert_allclose(*shares, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        (["toy/a", "toy/b"], ["a", "b"]),
        (["toy/a"], ["a"]),
        (["toy/a", "other/a"], ["toy/a", "other/a"]),
        (["a", "b"], ["a", "b"]),
        (["a"], ["a"]),
    ],
)
def test_images_of_one_set_go_out_without_its_name(tmp_path: Path, ids: list[str], written: list[str]) -> None:
    images = [image._replace(image_id=one) for image, one in zip(some_regions(len(ids)), ids, strict=True)]
    write_regions(str(tmp_path / "r.arrow"), images)
    convert_mvptr("export", str(tmp_path / "r.arrow"), str(tmp_path), MvptrFiles(file="tsv"))
    assert list(json.loads((tmp_path / "imageid2idx.json").read_text())) == written


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("img_frcnn_feats", {"7": torch.zeros(2, 3), "5": [1]}, r"feats.pt', row 1: image '5' has no matrix"),
        ("img_frcnn_feats", {"7": torch.full((2, 3), float("nan"))}, r"feats.pt', row 0: .* not finite"),
        ("img_frcnn_feats", {"6": torch.zeros(2, 3)}, r"row 0: image '6' has no tags"),
        ("vg_labels", {"7": {"class": ["a"]}}, r"labels.pt': image '7' has tags .* but 2 regions"),
        ("vg_labels", {"7": 3}, "image '7' has tags 3"),
        ("vg_labels", {}, "holds no map by image"),
        ("captions", {"7": "["}, r"captions.pt', row 0: image '7' has captions that are no JSON"),
        ("captions", {"7": [3]}, "row 0: image '7' has no list of captions"),
        ("sg", {"7": {0: [("dog",)]}}, r"sg.pt': image '7', caption 1 has no list of phrases"),
        ("sg", {"7": {0: ["a_b_c_d"], 1: []}}, "caption 0: 'a_b_c_d' is no phrase"),
    ],
)
def test_broken_sets_name_file_and_image(tmp_path: Path, part: str, content: object, message: str) -> None:
    write_set(tmp_path, **{part: content})
    with pytest.raises(InputError, match=message):
        convert_mvptr(
            "import",
            str(tmp_path),
            str(tmp_path / "out"),
            MvptrFiles(file="flickr", phrases=str(tmp_path / "test_sg.pt")),
        )


def test_programs_are_not_read(tmp_path: Path) -> None:
    write_set(tmp_path, vg_labels={"7": Path("x")})
    with pytest.raises(InputError, match="asks for"):
        list(read_pt_regions(*paths(tmp_path)))
