from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from small_models import karpathy_json

from xmatch.data.captions import read_captions
from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError


def test_karpathy_captions_point_at_their_images(tmp_path: Path, image_folder: str) -> None:
    path = karpathy_json(tmp_path / "c.json", {"train": ["a.jpg", "b.jpg"], "test": ["c.jpg"]})
    found = read_captions(path, image_folder, "train")
    assert found.image_ids == ["a", "b"]
    assert found.caption_image.tolist() == [0, 0, 1, 1]
    assert found.image_paths[1] == f"{image_folder}/b.jpg"
    assert read_captions(path, image_folder, "train,test").image_ids == ["a", "b", "c"]


def test_lxmert_captions_have_uids_and_skip_images_without_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "val2014"
    folder.mkdir(parents=True)
    name = "COCO_val2014_000000000042"
    (folder / f"{name}.jpg").write_bytes(b"")
    path = tmp_path / "mscoco_minival.json"
    path.write_text(
        json.dumps([{"img_id": name, "sentf": {"mscoco": ["x", "y"]}}, {"img_id": "7", "sentf": {"vg": []}}])
    )
    found = read_captions(str(path), str(tmp_path), "any")
    assert found.caption_ids == [f"{name}:mscoco:0", f"{name}:mscoco:1"]
    assert found.image_ids == [name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[]", "no captions"),
        ('{"images": []}', "no split 'train'"),
        ("3", "no caption file"),
        ('[{"sentf": {}}]', "entry 0.*img_id"),
        ('{"images": [{"split": "train", "filename": "a.jpg"}]}', "image 0.*sentences"),
    ],
)
def test_bad_caption_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_captions(str(path), str(tmp_path), "train")
    assert "c.json" in str(error.value)


def test_missing_images_are_counted_and_a_missing_split_lists_those_there(tmp_path: Path, image_folder: str) -> None:
    path = karpathy_json(tmp_path / "c.json", {"train": ["a.jpg", "zz.jpg"]})
    with pytest.raises(InputError, match="1 of 2 captioned images"):
        read_captions(path, image_folder, "train")
    with pytest.raises(InputError, match="no split 'val'; it has train"):
        read_captions(path, image_folder, "val")
    with pytest.raises(InputError, match="does not exist"):
        read_captions(path, str(tmp_path / "nowhere"), "train")


def test_a_file_name_cannot_leave_the_image_folder(tmp_path: Path, image_folder: str) -> None:
    path = karpathy_json(tmp_path / "c.json", {"train": ["../../secret.jpg"]})
    with pytest.raises(InputError, match="would leave"):
        read_captions(path, image_folder, "train")


def test_a_folder_without_captions_says_what_it_may_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"_caps\.txt, \*\.tar or \*\.parquet"):
        read_captions(str(tmp_path), "", "train")


def test_a_glob_may_be_a_uri(tmp_path: Path, image_folder: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(f"{image_folder}/a.jpg", arcname="a.jpg")
        text = tarfile.TarInfo("a.txt")
        text.size = 3
        tar.addfile(text, io.BytesIO(b"one"))
    found = read_captions(f"{tmp_path.as_uri()}/*.tar", "", "")
    assert found.image_paths == [f"{tmp_path.as_uri()}/0.tar#a.jpg"]
    assert decode_rgb(found.image_paths[0]).mode == "RGB"
