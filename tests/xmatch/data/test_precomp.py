from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmatch.data.captions import read_captions
from xmatch.data.precomp import plan_split, read_precomp
from xmatch.errors import InputError


def tree(folder: Path, split: str = "train", images: int = 4, per_image: int = 5, fivefold: bool = False) -> Path:
    """A precomputed split whose region 0 of image i starts with the number i."""
    folder.mkdir(parents=True, exist_ok=True)
    features = np.random.default_rng(0).normal(size=(images, 3, 2)).astype(np.float32)
    features[:, 0, 0] = np.arange(images)
    repeats = 5 if fivefold else 1
    np.save(folder / f"{split}_ims.npy", np.repeat(features, repeats, axis=0))
    np.save(folder / f"{split}_boxes.npy", np.zeros((images, 3, 4), np.float32) + np.arange(images)[:, None, None])
    np.save(folder / f"{split}_img_sizes.npy", np.full((images, 2), 9))
    lines = [f"caption {i} of {image}" for image in range(images) for i in range(per_image)]
    (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    write_ids(folder / f"{split}_ids.txt", [100 + image for image in range(images)])
    return folder


def write_ids(path: Path, ids: list[int]) -> None:
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


@pytest.mark.parametrize("fivefold", [False, True])
@pytest.mark.parametrize("ids", ["image", "caption", "none"])
def test_every_layout_of_a_split_is_the_same_split(tmp_path: Path, fivefold: bool, ids: str) -> None:
    folder = tree(tmp_path, fivefold=fivefold)
    if ids == "caption":
        write_ids(folder / "train_ids.txt", [100 + row // 5 for row in range(20)])
    if ids == "none":
        (folder / "train_ids.txt").unlink()
    found = read_precomp(str(folder), "train")
    assert found.captions.image_ids == [str(row + (0 if ids == "none" else 100)) for row in range(4)]
    assert found.captions.caption_image.tolist() == [row // 5 for row in range(20)]
    assert found.captions.captions[7] == "caption 2 of 1"
    assert found.regions is not None and found.regions.shape == (4, 3, 2)
    assert isinstance(found.regions, np.memmap)
    assert found.regions[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.boxes is not None and found.boxes[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.sizes is not None and found.sizes.shape == (4, 2)


def test_one_caption_an_image_is_not_taken_for_five(tmp_path: Path) -> None:
    folder = tree(tmp_path, images=10, per_image=1)
    for with_ids in (True, False):
        found = read_precomp(str(folder), "train")
        assert found.captions.caption_image.tolist() == list(range(10))
        assert found.regions is not None and len(found.regions) == 10
        if with_ids:
            (folder / "train_ids.txt").unlink()


def test_dev_is_its_first_thousand_images_as_published(tmp_path: Path) -> None:
    folder = tree(tmp_path, "dev", images=1014)
    published, whole = (read_precomp(str(folder), "dev", original=original) for original in (True, False))
    assert len(published.captions.captions) == 5000 and len(whole.captions.captions) == 5070
    for found, count in ((published, 1000), (whole, 1014)):
        arrays = (found.regions, found.boxes, found.sizes, found.captions.image_ids)
        assert [len(rows) for rows in arrays if rows is not None] == [count] * 4
    assert len(read_precomp(str(tree(tmp_path, "test", images=1014)), "test").captions.image_ids) == 1014


def test_captions_need_no_features_and_flat_features_are_one_region(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    np.save(folder / "train_ims.npy", np.ones((4, 7), np.float32))
    (folder / "train_boxes.npy").unlink()
    found = read_precomp(str(folder), "train")
    assert found.regions is not None and found.regions.shape == (4, 1, 7)
    (folder / "train_ims.npy").unlink()
    assert read_precomp(str(folder), "train").regions is None


def test_caption_ids_come_from_the_cxc_annotations(tmp_path: Path) -> None:
    folder = tree(tmp_path / "precomp", "testall")
    (tmp_path / "cxc_annots").mkdir()
    write_ids(tmp_path / "cxc_annots" / "testall_capids.txt", list(range(700, 720)))
    assert read_precomp(str(folder), "testall").captions.caption_ids[3] == "703"
    write_ids(tmp_path / "cxc_annots" / "testall_capids.txt", [1])
    with pytest.raises(InputError, match="has 1 ids.*20 captions"):
        read_precomp(str(folder), "testall")


def test_the_mapping_finds_the_photographs(tmp_path: Path, image_folder: str) -> None:
    folder = tree(tmp_path / "precomp")
    with pytest.raises(InputError, match=r"id_mapping\.json"):
        read_captions(str(folder), image_folder, "train")
    names = {"100": "a.jpg", "101": "b.jpg", "102": "c.jpg", "103": "d.jpg"}
    (tmp_path / "id_mapping.json").write_text(json.dumps(names))
    found = read_captions(str(folder), image_folder, "train")
    assert found.image_paths[2] == f"{image_folder}/c.jpg"
    assert len(found.captions) == 20
    tree(tmp_path / "precomp", "test")
    write_ids(folder / "test_ids.txt", [104, 105, 106, 107])
    with pytest.raises(InputError, match="no file name for image '104'"):
        read_captions(str(folder), image_folder, "train,test")
    (tmp_path / "id_mapping.json").write_text(json.dumps(names | {str(i): "e.jpg" for i in range(104, 108)}))
    assert len(read_captions(str(folder), image_folder, "train,test").image_ids) == 8
    (tmp_path / "id_mapping.json").write_text(json.dumps(names | {"100": "../../x.jpg"}))
    with pytest.raises(InputError, match="would leave"):
        read_captions(str(folder), image_folder, "train")
    with pytest.raises(InputError, match="no split 'val'; it has test, train"):
        read_captions(str(folder), image_folder, "val")


def test_a_blank_caption_keeps_its_place_and_is_counted(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    lines = (folder / "train_caps.txt").read_text().split("\n")
    lines[6] = " "
    (folder / "train_caps.txt").write_text("\n".join(lines))
    found = read_precomp(str(folder), "train").captions
    assert found.captions[6:8] == ["", "caption 2 of 1"]
    assert found.bad_rows == 1 and "train_caps.txt, line 7" in found.first_bad[0]


@pytest.mark.parametrize(
    ("captions", "ids", "rows", "message"),
    [
        (19, 4, 4, "19 captions for 4 images"),
        (20, 5, 4, "20 captions for 5 images"),
        (20, 4, 5, "5 rows for the 4 images"),
        (20, None, 3, "20 captions for 3 images"),
        (20, None, None, "both missing"),
        (0, 0, None, "0 captions for 0 images"),
    ],
)
def test_counts_that_differ_stop(captions: int, ids: int | None, rows: int | None, message: str) -> None:
    names = None if ids is None else [str(i) for i in range(ids)]
    features = None if rows is None else np.zeros((rows, 3, 2), np.float32)
    with pytest.raises(InputError, match=message):
        plan_split(captions, names, features, "f/train")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ims", np.asarray([{}] * 4, dtype=object), "array of Python objects is refused"),
        ("ims", np.asarray(["x"] * 4), "expected numbers"),
        ("boxes", np.zeros((4, 3, 5), np.float32), "the last of 4 numbers"),
        ("boxes", np.zeros((4, 2, 4), np.float32), "2 boxes an image, but there are 3 regions"),
        ("boxes", np.zeros((3, 3, 4), np.float32), "3 rows, but the split's features have 4"),
        ("img_sizes", np.zeros((4, 3), np.float32), "the last of 2 numbers"),
    ],
)
def test_arrays_of_another_form_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    folder = tree(tmp_path)
    np.save(folder / f"train_{name}.npy", value)
    with pytest.raises(InputError, match=message) as error:
        read_precomp(str(folder), "train")
    assert f"train_{name}.npy" in str(error.value)


def test_truncated_arrays_and_repeated_ids_are_named(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    write_ids(folder / "train_ids.txt", [1, 2, 2, 3])
    with pytest.raises(InputError, match="'2' repeats"):
        read_precomp(str(folder), "train")
    write_ids(folder / "train_ids.txt", [1, 2, 3, 4])
    data = (folder / "train_ims.npy").read_bytes()
    for broken in (data[:-8], data[:20], b""):
        (folder / "train_ims.npy").write_bytes(broken)
        with pytest.raises(InputError, match=r"train_ims\.npy.*not a whole array"):
            read_precomp(str(folder), "train")
