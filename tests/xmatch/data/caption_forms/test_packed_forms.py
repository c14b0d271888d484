from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from xmatch.data import files
from xmatch.data.captions import read_captions
from xmatch.data.decode import decode_rgb
from xmatch.errors import InputError


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture
def photos(image_folder: str) -> list[bytes]:
    return [Path(image_folder, name).read_bytes() for name in ("a.jpg", "b.jpg", "c.jpg")]


@pytest.mark.parametrize("place", ["0.tar", ".", "*.tar", "?.tar"])
def test_tars_hold_captions_and_images(tmp_path: Path, photos: list[bytes], place: str) -> None:
    write_tar(tmp_path / "0.tar", {"x/k1.jpg": photos[0], "x/k1.txt": b"one\n caption", "x/k1.json": b'{"width": 3}'})
    if place != "0.tar":
        captions = json.dumps({"captions": ["two", "three"]}).encode()
        write_tar(tmp_path / "1.tar", {"k2.json": captions, "k2.JPG": photos[1]})
    found = read_captions(str(tmp_path / place) if place != "." else str(tmp_path), "", "any")
    assert found.captions == ["one caption", "two", "three"][: len(found.captions)]
    assert found.caption_image.tolist() == [0, 1, 1][: len(found.captions)]
    assert found.image_ids == ["x/k1", "k2"][: len(found.image_ids)]
    assert len(found.captions) == (1 if place == "0.tar" else 3)
    for row, path in enumerate(found.image_paths):
        assert decode_rgb(path).tobytes() == decode_rgb(photos[row]).tobytes()


def test_bad_members_are_counted(tmp_path: Path, photos: list[bytes]) -> None:
    path = write_tar(
        tmp_path / "0.tar",
        {
            "good.jpg": photos[0],
            "good.txt": b"fine",
            "alone.jpg": photos[1],
            "lost.txt": b"no image",
            "bytes.jpg": photos[2],
            "bytes.txt": b"\xff\xfe",
            "form.json": b"{",
        },
    )
    found = read_captions(path, "", "")
    assert found.captions == ["fine"]
    assert found.bad_rows == 5  # alone, lost, bytes.txt and its image, form.json
    assert all("0.tar" in text for text in found.first_bad)


def test_names_that_climb_stay_names_and_links_are_left_out(tmp_path: Path, photos: list[bytes]) -> None:
    (tmp_path / "x.jpg").write_bytes(photos[2])
    path = write_tar(tmp_path / "0.tar", {"../x.jpg": photos[0], "../x.txt": b"climbs"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("evil.txt"), io.BytesIO())
    found = read_captions(path, "", "")
    assert found.image_ids == ["../x"]
    assert decode_rgb(found.image_paths[0]).tobytes() == decode_rgb(photos[0]).tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.tar", "x.jpg"]


def test_repeated_keys_and_broken_tars_are_named(tmp_path: Path, photos: list[bytes]) -> None:
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, {"k.jpg": photos[0], "k.txt": b"one"})
    with pytest.raises(InputError, match=r"1\.tar.*'k'.*before"):
        read_captions(str(tmp_path), "", "")
    (tmp_path / "1.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"1\.tar.*not a whole tar"):
        read_captions(str(tmp_path / "1.tar"), "", "")
    with pytest.raises(InputError, match="does not exist"):
        read_captions(str(tmp_path / "no.tar"), "", "")
    with pytest.raises(InputError, match="at least one"):
        read_captions(str(tmp_path / "x*.tar"), "", "")


def test_parquet_holds_captions_and_images(tmp_path: Path, photos: list[bytes]) -> None:
    table = pa.table(
        {
            "id": ["p", "q", "p"],
            "image": [{"bytes": photos[i], "path": None} for i in (0, 1, 0)],
            "caption": ["one", "two", "three"],
        }
    )
    files.write_parquet(str(tmp_path / "0.parquet"), table)
    found = read_captions(str(tmp_path), "", "any")
    assert found.image_ids == ["p", "q"]
    assert found.caption_image.tolist() == [0, 1, 0]
    assert decode_rgb(found.image_paths[1]).tobytes() == decode_rgb(photos[1]).tobytes()


def test_parquet_without_ids_counts_rows_and_takes_the_split(tmp_path: Path, photos: list[bytes]) -> None:
    for name in ("0", "1"):
        table = pa.table({"bytes": photos, "captions": [["a", " "], [], ["b", "c"]], "split": ["train", "train", name]})
        files.write_parquet(str(tmp_path / f"{name}.parquet"), table)
    found = read_captions(str(tmp_path), "", "train,1")
    assert found.image_ids == ["0:0", "1:0", "1:2"]
    assert found.captions == ["a", "a", "b", "c"]
    assert len(set(found.caption_ids)) == 4
    assert found.bad_rows == 2
    assert found.image_paths[2] == f"{tmp_path}/1.parquet#2"
    with pytest.raises(InputError, match="no split 'test'; it has 0, 1, train"):
        read_captions(str(tmp_path), "", "test")


def test_parquet_may_name_images_in_a_folder_but_not_outside(tmp_path: Path, image_folder: str) -> None:
    place = str(tmp_path / "0.parquet")
    files.write_parquet(place, pa.table({"path": ["a.jpg", None], "caption": ["one", "two"]}))
    found = read_captions(place, image_folder, "")
    assert found.image_paths == [f"{image_folder}/a.jpg"]
    assert found.bad_rows == 1
    files.write_parquet(place, pa.table({"path": ["../../x.jpg"], "caption": ["one"]}))
    with pytest.raises(InputError, match=r"0\.parquet', row 0.*would leave"):
        read_captions(place, image_folder, "")
    files.write_parquet(place, pa.table({"bytes": [b""], "words": ["one"]}))
    with pytest.raises(InputError, match=r"0\.parquet.*expected captions in one of caption"):
        read_captions(place, image_folder, "")
