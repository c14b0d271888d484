from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from small_models import golden

from xmatch.data import files
from xmatch.data.image_sets import ImageReader, ImageSource, image_path, plan_image_shards, split_universal_id
from xmatch.errors import InputError

ROOTS = {"coco": "data/mscoco", "vg": "data/vg", "cc": "data/cc", "open": "data/open_images"}


def read_all(source: ImageSource, per_shard: int = 5) -> pa.Table:
    reader = ImageReader(source)
    return pa.concat_tables([reader(shard) for shard in plan_image_shards(source, per_shard)])


@pytest.mark.parametrize(("set_name", "image_id", "path"), golden("naming")["extractor_paths"])
def test_paths_are_the_originals(set_name: str, image_id: str, path: str) -> None:
    assert image_path(set_name, image_id, ROOTS[set_name.split("_")[0]]) == path


@pytest.mark.parametrize("image_id", ["14928b4f367c217", "14928B4F367C217E", "../../../../etc/pass"])
def test_open_images_ids_are_checked_in_subsets_of_any_name(image_id: str) -> None:
    assert image_path("open_images_500k", "14928b4f367c217e", "r") == "r/images/14928b4f367c217e.jpg"
    with pytest.raises(InputError, match="16 hexadecimal"):
        image_path("open_images_500k", image_id, "r")


def test_a_folder_is_read_in_name_order_in_shards(image_folder: str) -> None:
    source = ImageSource(root=image_folder, set_name="mine")
    table = read_all(source)
    assert table.column("id").to_pylist() == [f"mine/{chr(97 + i)}" for i in range(12)]
    assert len(plan_image_shards(source, 5)) == 3
    first = ImageSource(root=image_folder, set_name="mine", max_images=7)
    assert read_all(first).column("id").to_pylist() == table.column("id").to_pylist()[:7]


def test_an_id_list_follows_the_path_rule(tmp_path: Path) -> None:
    (tmp_path / "open_images_500k.ids").write_text("14928b4f367c217e\n24928b4f367c217e\n")
    source = ImageSource(
        root="oi", set_name="open_images_500k", kind="ids", ids_file=str(tmp_path / "open_images_500k.ids")
    )
    table = read_all(source)
    assert table.column("id").to_pylist()[1] == "open_images_500k/24928b4f367c217e"
    assert table.column("uri").to_pylist()[0] == "oi/images/14928b4f367c217e.jpg"


def test_tars_are_read_without_extraction(tmp_path: Path, image_folder: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            tar.add(f"{image_folder}/{name}", arcname=name)
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    table = read_all(ImageSource(root=str(tmp_path), set_name="tars", kind="webdataset"))
    assert table.column("id").to_pylist() == ["tars/a", "tars/b"]
    assert table.column("bytes")[0].as_py() == Path(image_folder, "a.jpg").read_bytes()


def test_parquet_bytes_are_read(tmp_path: Path) -> None:
    files.write_parquet(str(tmp_path / "0.parquet"), pa.table({"id": ["x"], "bytes": [b"jpeg"]}))
    table = read_all(ImageSource(root=str(tmp_path), set_name="s", kind="parquet"))
    assert table.to_pylist() == [{"id": "s/x", "uri": f"{tmp_path}/0.parquet#x", "bytes": b"jpeg"}]
    files.write_parquet(str(tmp_path / "1.parquet"), pa.table({"name": ["x"]}))
    with pytest.raises(InputError, match=r"1\.parquet.*`id` and `bytes`"):
        read_all(ImageSource(root=str(tmp_path), set_name="s", kind="parquet"))


def test_missing_and_broken_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan_image_shards(ImageSource(root=str(tmp_path / "no")), 5)
    with pytest.raises(InputError, match="no images"):
        plan_image_shards(ImageSource(root=str(tmp_path)), 5)
    (tmp_path / "0.tar").write_bytes(b"\1" * 700)
    with pytest.raises(InputError, match=r"0\.tar.*not a whole tar"):
        read_all(ImageSource(root=str(tmp_path), kind="webdataset"))


def test_universal_ids_have_two_parts() -> None:
    assert split_universal_id("vg_nococo/1000") == ("vg_nococo", "1000")
    with pytest.raises(InputError, match="SET/IMAGE"):
        split_universal_id("1000")
