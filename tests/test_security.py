"""Attacks by data: names that climb, links that lead out, programs that pose as numbers, packs that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raydeploy.streams  # noqa: F401 - makes Ray Data register its column types, as every job does
from jobs import embed
from raydeploy import connect
from vokenize.original_tokens import read_dataset
from vokenize.tokens import plan_token_shards, read_token_shard
from xmatch.data import files, packed_images
from xmatch.data.captions import CaptionSet, read_captions
from xmatch.data.decode import UnreadableImage, decode_rgb
from xmatch.data.image_sets import ImageReader, ImageSource, plan_image_shards
from xmatch.data.key_banks import open_key_bank
from xmatch.data.packed_images import read_packed
from xmatch.data.plain_columns import require_plain
from xmatch.errors import InputError
from xmatch.evaluation.members import embeddings_member
from xmatch.models.towers.weights import read_checkpoint

CLIMBING = ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "s3://b/x.jpg", "http://h/x.jpg", "file:///etc/x.jpg", "a\0.jpg"]
PIECES = st.sampled_from(["..", ".", "", "a", "/", "\\", "s3:", "//", "~", "\0", "#", "x.tar#", "%2e%2e", "é"])


@given(parts=st.lists(st.lists(PIECES, max_size=5).map("/".join), min_size=1, max_size=3))
def test_a_joined_name_is_refused_or_below_its_root(parts: list[str]) -> None:
    for root in ("/data/root", "root", ""):
        try:
            found = files.join(root, *parts)
        except InputError:
            continue
        inside = os.path.normpath(os.path.join("/cwd", found))
        assert f"{inside}/".startswith(os.path.normpath(os.path.join("/cwd", root)) + "/")


def caption_files(folder: Path, name: str) -> dict[str, str]:
    """A caption file of each form that names one image so."""
    stem = os.path.splitext(name)[0]
    sentences = [{"raw": "a cat", "sentid": 1}]
    entry = {"split": "train", "sentences": sentences}
    forms = {
        "karpathy": {"images": [entry | {"filename": name}]},
        "filepath": {"images": [entry | {"filename": "x.jpg", "filepath": name}]},
        "lxmert": [{"img_id": stem, "sentf": {"mscoco": ["a cat"]}}],
        "lxmert_coco": [{"img_id": f"COCO_{stem}_1", "sentf": {"mscoco": ["a cat"]}}],
        "coco": {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}],
        },
    }
    for form, content in forms.items():
        (folder / f"{form}.json").write_text(json.dumps(content))
    (folder / "conceptual.tsv").write_text(f"a cat\t{name}\n")
    pq.write_table(pa.table({"caption": ["a cat"], "path": [name]}), folder / "names.parquet")
    return {path.name: str(path) for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("name", CLIMBING)
def test_no_caption_file_names_an_image_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    for path in caption_files(tmp_path, name).values():
        with pytest.raises(InputError) as refused:
            read_captions(path, str(tmp_path / "images"), "train")
        assert any(word in str(refused.value) for word in ("would leave", "link")), (path, str(refused.value))


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("set_name", ["vg_x", "cc_x", "coco_x", "open_images"])
def test_no_list_of_ids_names_an_image_outside_its_folder(tmp_path: Path, set_name: str, name: str) -> None:
    for line in (name, f"COCO_{name}_1"):
        (tmp_path / "x.ids").write_text(f"{line}\n")
        source = ImageSource(root=str(tmp_path), set_name=set_name, kind="ids", ids_file=str(tmp_path / "x.ids"))
        with pytest.raises(InputError, match=r"would leave|16 hexadecimal"):
            plan_image_shards(source, 5)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder `images` with a.jpg and a link to it, beside a folder `secret`."""
    for name in ("images", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"one")
    (tmp_path / "images" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "secret" / "c.jpg").write_bytes(b"not for you")
    return tmp_path


def sources(root: Path) -> list[ImageSource]:
    (root.parent / "x.ids").write_text("c\n")
    ids = str(root.parent / "x.ids")
    return [ImageSource(root=str(root)), ImageSource(root=str(root), kind="ids", ids_file=ids, set_name="vg_x")]


def test_links_within_a_root_and_a_root_that_is_one_are_followed(linked: Path) -> None:
    (linked / "door").symlink_to("images")
    for root in ("images", "door"):
        source = ImageSource(root=str(linked / root))
        (shard,) = plan_image_shards(source, 5)
        assert ImageReader(source)(shard).column("id").to_pylist() == ["images/a", "images/b"]


@pytest.mark.parametrize("target", ["../secret/c.jpg", "{}/secret/c.jpg", "d.jpg"])
def test_a_link_out_of_an_image_root_is_refused_by_name(linked: Path, target: str) -> None:
    there = sources(linked / "images")
    planned = [plan_image_shards(source, 5)[0] for source in there]
    (linked / "images" / "d.jpg").symlink_to("../secret/c.jpg")
    (linked / "images" / "c.jpg").symlink_to(target.format(linked))
    (linked / "images" / "images").symlink_to("../secret")
    for source, shard in zip(there, planned, strict=True):
        with pytest.raises(InputError, match=r"c\.jpg' is a link to '.*secret/c\.jpg', outside of '.*images'"):
            plan_image_shards(source, 5)
        with pytest.raises(InputError, match="outside of"):
            ImageReader(source)(shard if source.kind == "ids" else shard._replace(stop=3))


def test_a_link_out_of_a_captioned_folder_is_refused_whatever_lies_between(linked: Path) -> None:
    (linked / "images" / "sub").symlink_to("../secret")
    (linked / "images" / "c.jpg").symlink_to("../secret/c.jpg")
    for name in ("c.jpg", "sub/c.jpg"):
        entry = {"filename": name, "split": "train", "sentences": [{"raw": "a cat"}]}
        (linked / "c.json").write_text(json.dumps({"images": [entry]}))
        with pytest.raises(InputError, match=f"{name}' is a link to .*outside"):
            read_captions(str(linked / "c.json"), str(linked / "images"), "train")


def test_a_folder_whose_name_begins_as_the_roots_is_outside(linked: Path) -> None:
    (linked / "images-of-others").mkdir()
    (linked / "images-of-others" / "c.jpg").write_bytes(b"x")
    (linked / "images" / "c.jpg").symlink_to("../images-of-others/c.jpg")
    with pytest.raises(InputError, match="outside"):
        plan_image_shards(ImageSource(root=str(linked / "images")), 5)


def test_a_pack_that_is_a_link_out_is_refused(linked: Path) -> None:
    for kind, suffix in (("webdataset", "tar"), ("parquet", "parquet")):
        (linked / "images" / f"0.{suffix}").symlink_to("../secret/c.jpg")
        with pytest.raises(InputError, match="outside"):
            plan_image_shards(ImageSource(root=str(linked / "images"), kind=kind), 5)  # type: ignore[arg-type]


def hostile_tar(path: Path) -> str:
    """Members that climb, links, a device, and one plain image."""
    with tarfile.open(path, "w") as tar:
        for name in ("../../out.jpg", "/etc/out.jpg", "ok.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    return str(path)


def test_members_of_a_tar_are_names_and_never_places(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = hostile_tar(tmp_path / "deep" / "er" / "0.tar")
    before = sorted(tmp_path.rglob("*"))
    source = ImageSource(root=str(tmp_path / "deep" / "er"), kind="webdataset")
    (shard,) = plan_image_shards(source, 5)
    rows = ImageReader(source)(shard)
    assert rows.column("bytes").to_pylist() == [b"abc"] * 3
    assert read_packed(path, "/etc/out.jpg") == b"abc"
    for name in ("l.jpg", "h.jpg", "d.jpg", "../../../../etc/passwd"):
        with pytest.raises(InputError, match="has no file"):
            read_packed(path, name)
    assert sorted(tmp_path.rglob("*")) == before


def tar_head(name: bytes, size: bytes, kind: bytes) -> bytes:
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT)[:512])
    head[0 : len(name)], head[124:136], head[156:157] = name, size.ljust(12, b"\0"), kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S"])
@pytest.mark.parametrize("size", [b"77777777777", b"\x80" + (2**62).to_bytes(11, "big"), b"\xff" * 12])
def test_a_tar_that_lies_about_sizes_is_one_paragraph(tmp_path: Path, kind: bytes, size: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(tar_head(b"a.jpg\0", size, kind) + bytes(2048))
    with pytest.raises(UnreadableImage):
        decode_rgb(f"{tmp_path}/0.tar#a.jpg")
    source = ImageSource(root=str(tmp_path), kind="webdataset")
    (shard,) = plan_image_shards(source, 5)
    try:
        rows = ImageReader(source)(shard)
    except InputError:
        return
    assert rows.column("bytes").to_pylist() in ([], [None])


def test_an_image_too_large_in_a_tar_is_left_to_be_quarantined(tmp_path: Path, monkeypatch) -> None:
    hostile_tar(tmp_path / "0.tar")
    for module in ("image_sets", "packed_images"):
        monkeypatch.setattr(f"xmatch.data.{module}.MAX_ENCODED_BYTES", 2)
    source = ImageSource(root=str(tmp_path), kind="webdataset")
    (shard,) = plan_image_shards(source, 5)
    rows = ImageReader(source)(shard)
    assert rows.column("bytes").null_count == 3
    with pytest.raises(UnreadableImage, match="more than the 2 allowed"):
        decode_rgb(rows.column("uri")[2].as_py())


def test_a_row_group_too_large_is_not_read(tmp_path: Path, monkeypatch) -> None:
    pq.write_table(pa.table({"bytes": [b"x" * 1000]}), tmp_path / "0.parquet")
    monkeypatch.setattr(packed_images, "MAX_GROUP_BYTES", 100)
    with pytest.raises(InputError, match="row group 0 has .* more than the 100 allowed"):
        read_packed(str(tmp_path / "0.parquet"), "0")


class Program:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A place that comes into being when a pickle is loaded; that it can is shown."""
    pickle.loads(pickle.dumps(Program(tmp_path / "shown")))  # noqa: S301
    assert (tmp_path / "shown").is_dir()
    return tmp_path / "sprung"


def pickled_column(trap: Path, name: str = "ray.data.arrow_pickled_object") -> tuple[pa.Field, pa.Array]:
    about = {"ARROW:extension:name": name, "ARROW:extension:metadata": ""}
    column = pa.array([pickle.dumps(Program(trap))], pa.large_binary())
    return pa.field("id", pa.large_binary(), metadata=about), column


def write_trapped(path: Path, field: pa.Field, column: pa.Array) -> str:
    """A key bank whose ids are pickles."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2)
    more = {"vector": vectors, "group": pa.nulls(1, pa.string()), "uri": pa.nulls(1, pa.string())}
    schema = pa.schema([field, *(pa.field(name, column.type) for name, column in more.items())])
    table = pa.table([column, *more.values()], schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table)
    return str(path)


def test_rays_column_type_does_unpickle_where_it_is_not_refused(tmp_path: Path, trap: Path) -> None:
    path = write_trapped(tmp_path / "k.parquet", *pickled_column(trap))
    pq.read_table(path).column("id").to_pylist()
    assert trap.is_dir()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_key_bank_of_pickles_is_refused(tmp_path: Path, trap: Path, suffix: str) -> None:
    path = write_trapped(tmp_path / f"k.{suffix}", *pickled_column(trap))
    with pytest.raises(InputError, match="'id' has the extension type 'ray.data.arrow_pickled_object'"):
        open_key_bank(path).ids.to_pylist()
    assert not trap.exists()


@pytest.mark.parametrize("wrap", ["list", "struct", "dictionary"])
def test_pickles_within_other_columns_are_refused(tmp_path: Path, trap: Path, wrap: str) -> None:
    from ray.data.extensions import ArrowPythonObjectType

    _, storage = pickled_column(trap)
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)
    wrapped = {
        "list": lambda: pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column),
        "struct": lambda: pa.StructArray.from_arrays([column], ["inner"]),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), column),
    }[wrap]()
    with pytest.raises(InputError, match="could run code"):
        require_plain(pa.table({"id": wrapped}).schema, "x")
    assert not trap.exists()


def test_token_shards_of_pickles_are_refused(tmp_path: Path, trap: Path) -> None:
    field, column = pickled_column(trap)
    columns = {"line_id": pa.array([0], pa.int64()), "token_ids": pa.array([[1]], pa.list_(pa.int32()))}
    schema = pa.schema([field.with_name("text"), *(pa.field(name, one.type) for name, one in columns.items())])
    pq.write_table(pa.table([column, *columns.values()], schema=schema), tmp_path / "part-00000.parquet")
    with pytest.raises(InputError, match="could run code"):
        read_token_shard(plan_token_shards(str(tmp_path))[0])
    assert not trap.exists()


def test_images_and_captions_of_pickles_are_refused(tmp_path: Path, trap: Path) -> None:
    field, column = pickled_column(trap)
    schema = pa.schema([field, pa.field("bytes", pa.binary()), pa.field("caption", pa.string())])
    pq.write_table(pa.table([column, pa.array([b"x"]), pa.array(["a cat"])], schema=schema), tmp_path / "0.parquet")
    source = ImageSource(root=str(tmp_path), kind="parquet")
    with pytest.raises(InputError, match="could run code"):
        ImageReader(source)(plan_image_shards(source, 5)[0])
    with pytest.raises(UnreadableImage, match="could run code"):
        decode_rgb(f"{tmp_path}/0.parquet#a")
    with pytest.raises(InputError, match="could run code"):
        read_captions(str(tmp_path / "0.parquet"), "", "train")
    assert not trap.exists()


def test_an_hdf5_of_objects_or_of_other_files_is_refused(tmp_path: Path, trap: Path) -> None:
    (tmp_path / "s.ids").write_text("a\n")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(struct.pack("<2f", 1, 2))
    rows = np.ones((1, 2), np.float32)
    with h5py.File(tmp_path / "other.hdf5", "w") as store:
        store["keys"] = rows
    layout = h5py.VirtualLayout((1, 2), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "keys", (1, 2))
    kinds = {
        "objects": lambda s: s.create_dataset(
            "keys", data=np.array([[pickle.dumps(Program(trap)).hex()] * 2], object), dtype=h5py.string_dtype()
        ),
        "external": lambda s: s.create_dataset("keys", (1, 2), np.float32, external=[(str(secret), 0, 8)]),
        "virtual": lambda s: s.create_virtual_dataset("keys", layout),
        "link": lambda s: s.__setitem__("keys", h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/keys")),
        "soft": lambda s: (
            s.__setitem__("there", h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/keys")),
            s.__setitem__("keys", h5py.SoftLink("/there")),
        ),
        "group": lambda s: s.create_group("keys"),
    }
    for kind, write in kinds.items():
        with h5py.File(tmp_path / "s.hdf5", "w") as store:
            write(store)
        with pytest.raises(InputError, match=r"s\.hdf5'"):
            open_key_bank(str(tmp_path / "s.hdf5"))
        assert not trap.exists(), kind


def test_tokens_that_lie_in_another_file_are_refused(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.bin", str(tmp_path / "t.hdf5")
    secret.write_bytes(struct.pack("<2i", 1, 2))
    with h5py.File(tmp_path / "other.hdf5", "w") as store:
        store["tokens"] = np.ones(2, np.int32)
    layout = h5py.VirtualLayout((2,), np.int32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "tokens", (2,))
    for write in (
        lambda s: s.create_dataset("tokens", (2,), np.int32, external=[(str(secret), 0, 8)]),
        lambda s: s.create_virtual_dataset("tokens", layout),
        lambda s: s.__setitem__("tokens", h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/tokens")),
    ):
        with h5py.File(path, "w") as store:
            write(store)
        with pytest.raises(InputError, match="lies in another file"):
            read_dataset(path, "tokens")
    with h5py.File(path, "w") as store:
        store["tokens"] = np.array([1, 2], np.int32)
    assert read_dataset(path, "tokens").tolist() == [1, 2]


def test_saved_arrays_and_weights_of_pickles_are_refused(tmp_path: Path, trap: Path) -> None:
    hostile = np.array([[Program(trap)]], object)
    np.save(tmp_path / "i.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "z.npz", hostile)
    torch.save({"w": Program(trap)}, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Program(trap)))
    gallery = CaptionSet(["a"], ["a.jpg"], ["a cat"], ["1"], np.zeros(1, np.int64))
    with pytest.raises(InputError, match="is not a whole .npy of numbers"):
        embeddings_member(str(tmp_path / "i.npy"), str(tmp_path / "i.npy"), gallery)
    for name in ("w.pth", "plain.pth", "z.npz"):
        with pytest.raises(InputError, match=name):
            read_checkpoint(str(tmp_path / name))
    assert not trap.exists()


def test_a_corpus_that_is_no_text_is_one_paragraph(tmp_path: Path, tiny_model: str, capsys) -> None:
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(["a cat"], protocol=4))
    words = ["--side", "text", "--model", tiny_model, "--texts.path", str(tmp_path / "c.pkl")]
    assert embed.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_ray_that_a_job_starts_is_on_loopback_and_without_a_dashboard(monkeypatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(connect.ray, "init", lambda **settings: given.update(settings))
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: None)
    monkeypatch.setattr(connect, "joins_a_cluster", lambda: False)
    with connect.connect(connect.RayConfig()):
        pass
    assert given["include_dashboard"] is False
    assert given["_node_ip_address"] == "127.0.0.1"
    assert os.environ["RAY_AUTH_MODE"] == "token"
