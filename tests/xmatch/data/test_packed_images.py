from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards
from xmatch.data.packed_images import read_packed, split_packed
from xmatch.errors import InputError


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_member_is_read_by_its_name(tmp_path: Path, form: int) -> None:
    members = {name: os.urandom(size) for name, size in (("a#b.jpg", 5), ("é" * 90, 1000), ("d/" * 60 + "c", 512))}
    path = write_tar(tmp_path / "x.tar", members, form)
    for name, content in members.items():
        assert split_packed(f"{path}#{name}") == (path, name)
        assert read_packed(path, name) == content


@pytest.mark.parametrize("uri", ["a/b.jpg", "a.tar", "a.tar#", "s3://b/c.jpg", "tar#x", "a.tgz#x"])
def test_other_places_are_not_packed(uri: str) -> None:
    assert split_packed(uri) is None


def test_what_an_image_set_names_can_be_decoded(tmp_path: Path, image_folder: str) -> None:
    data = Path(image_folder, "a.jpg").read_bytes()
    write_tar(tmp_path / "0.tar", {"a.jpg": data})
    pq.write_table(pa.table({"id": ["x/y"], "bytes": [data]}), tmp_path / "0.parquet")
    for kind in ("webdataset", "parquet"):
        source = ImageSource(root=str(tmp_path), set_name="s", kind=kind)  # type: ignore[arg-type]
        (shard,) = plan_image_shards(source, 5)
        uri = ImageReader(source)(shard).column("uri")[0].as_py()
        assert decode_rgb(uri).size == decode_rgb(data).size


def test_parquet_rows_are_found_in_any_row_group(tmp_path: Path) -> None:
    contents = [bytes([i]) * (i + 1) for i in range(11)]
    ids = [f"i{i}" for i in range(11)]
    pq.write_table(pa.table({"id": ids, "bytes": contents}), tmp_path / "ids.parquet", row_group_size=3)
    pq.write_table(pa.table({"image": contents}), tmp_path / "rows.parquet", row_group_size=4)
    for row in (10, 0, 3, 2, 4, 8):
        assert read_packed(str(tmp_path / "ids.parquet"), ids[row]) == contents[row]
        assert read_packed(str(tmp_path / "rows.parquet"), str(row)) == contents[row]


@pytest.mark.parametrize("member", ["11", "-1", "x", "²", "9" * 40])
def test_what_is_not_there_is_named(tmp_path: Path, member: str) -> None:
    pq.write_table(pa.table({"bytes": [b"x"] * 11}), tmp_path / "0.parquet")
    tar = write_tar(tmp_path / "0.tar", {"a.jpg": b"x"})
    for pack in (tar, str(tmp_path / "0.parquet")):
        with pytest.raises(InputError, match=r"0\.(tar|parquet)'.*has no"):
            read_packed(pack, member)
    with pytest.raises(UnreadableImage, match="has no file"):
        decode_rgb(f"{tar}#{member}")


def test_a_changed_tar_is_read_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1" * 600, "b": b"2"})
    assert read_packed(path, "b") == b"2"
    write_tar(tmp_path / "x.tar", {"b": b"three"})
    os.utime(path, ns=(1, 1))
    assert read_packed(path, "b") == b"three"


def test_missing_and_broken_packs_are_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.tar").write_bytes(b"\1" * 700)
    for pack, message in (("no.tar", "does not exist"), ("b.parquet", "not a whole"), ("b.tar", "not a whole tar")):
        with pytest.raises(UnreadableImage, match=message):
            decode_rgb(f"{tmp_path}/{pack}#x")
    pq.write_table(pa.table({"bytes": pa.array([None], pa.binary())}), tmp_path / "n.parquet")
    with pytest.raises(UnreadableImage, match="row 0.*null"):
        decode_rgb(f"{tmp_path}/n.parquet#0")
    pq.write_table(pa.table({"words": ["x"]}), tmp_path / "w.parquet")
    with pytest.raises(UnreadableImage, match="expected encoded images"):
        decode_rgb(f"{tmp_path}/w.parquet#0")


def test_packs_are_read_by_uri_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"one", "b.jpg": b"two"})
    pq.write_table(pa.table({"bytes": [b"x", b"y"]}), tmp_path / "0.parquet")
    assert read_packed((tmp_path / "0.tar").as_uri(), "b.jpg") == b"two"
    assert read_packed((tmp_path / "0.parquet").as_uri(), "1") == b"y"
    with pytest.raises(InputError, match="does not exist"):
        read_packed((tmp_path / "1.tar").as_uri(), "b.jpg")
