from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_models import CAPTIONS, tiny_model_object

from xmatch import DualEncoder
from xmatch.data.image_listing import LISTING_SCHEMA
from xmatch.data.key_banks import open_key_bank
from xmatch.data.region_places import position_code
from xmatch.data.region_sources import RegionReader, RegionSource, open_regions, plan_region_shards
from xmatch.data.vectors import make_vectors, matrix, write_vectors
from xmatch.embedding import EmbedImages, EmbedRegions, embedding_rows
from xmatch.errors import InputError
from xmatch.models.context.config import ContextConfig
from xmatch.models.towers.image import ImageTowerConfig


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_key_bank_of_half_the_bytes_is_the_other_one_rounded(
    tmp_path: Path, tiny_model: str, image_folder: str, dtype
) -> None:
    names = ["a", "b", "c"]
    rows = pa.table({"id": names, "uri": [f"{image_folder}/{n}.jpg" for n in names], "bytes": pa.nulls(3, pa.binary())})
    full = EmbedImages(tiny_model)("part-00000", rows).table
    write_vectors(str(tmp_path / "half.arrow"), EmbedImages(tiny_model, dtype=dtype)("part-00000", rows).table)
    write_vectors(str(tmp_path / "full.arrow"), full)
    half = open_key_bank(str(tmp_path / "half.arrow"))
    assert half.dtype.name == dtype
    expected = open_key_bank(str(tmp_path / "full.arrow")).rows.astype(half.dtype)
    np.testing.assert_array_equal(half.rows.astype(np.float32), expected.astype(np.float32))


def image_rows(image_folder: str) -> pa.Table:
    """The test images, and among them one that is no image."""
    paths = sorted(str(path) for path in Path(image_folder).iterdir())
    rows = [{"id": path[-5], "uri": path, "bytes": None} for path in paths]
    rows.insert(5, {"id": "broken", "uri": "nowhere.jpg", "bytes": b"no image"})
    return pa.Table.from_pylist(rows, LISTING_SCHEMA)


def test_decoding_ahead_changes_nothing(tiny_model: str, image_folder: str) -> None:
    rows = image_rows(image_folder)
    in_turn = EmbedImages(tiny_model, batch_size=3)("part-00000", rows)
    ahead = EmbedImages(tiny_model, batch_size=3, decoders=3)("part-00000", rows)
    assert ahead.table.equals(in_turn.table)
    assert ahead.counts == in_turn.counts == {"images": 12, "quarantined": 1}
    assert ahead.quarantine.equals(in_turn.quarantine)


def test_a_tower_in_half_precision_is_near(tiny_model: str, image_folder: str) -> None:
    rows = image_rows(image_folder)
    exact, near = (
        matrix(EmbedImages(tiny_model, precision=precision)("part-00000", rows).table)
        for precision in ("float32", "bfloat16")
    )
    assert near.dtype == exact.dtype == np.float32
    assert 0 < np.abs(exact - near).max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-5)


REGIONS = ImageTowerConfig(kind="regions", output="grid", width=12)
PLACED = ContextConfig(kind="gated_attention", heads=2, positions=True)


def saved(folder: Path, **changes) -> str:
    """A small dual encoder with three views, in a folder."""
    tiny_model_object(**({"image_pooling": "views", "views": 3} | changes)).save_pretrained(str(folder))
    return str(folder)


def precomp(folder: Path, *, has_boxes: bool = True) -> tuple[RegionSource, np.ndarray, np.ndarray]:
    """A precomputed folder of four images of five regions; its features and position codes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4, 5, 12)).astype(np.float32)
    corners = np.sort(rng.integers(0, 50, (4, 5, 2, 2)), axis=2).astype(np.float32)
    boxes, sizes = corners.reshape(4, 5, 4), np.array([[50 + row, 60] for row in range(4)], np.float32)
    (folder / "test_caps.txt").write_text("".join(f"{CAPTIONS[i % 4]}\n" for i in range(20)))
    (folder / "test_ids.txt").write_text("".join(f"{7 + i}\n" for i in range(4)))
    np.save(folder / "test_ims.npy", features)
    if has_boxes:
        np.save(folder / "test_boxes.npy", boxes)
        np.save(folder / "test_img_sizes.npy", sizes)
    return RegionSource(path=str(folder), split="test"), features, position_code(boxes, sizes)


def all_shards(step: EmbedRegions, source: RegionSource, size: int) -> pa.Table:
    read = RegionReader(source)
    return pa.concat_tables([step(s.id, read(s)).table for s in plan_region_shards(source, size)])


def test_views_are_rows_of_one_group(tmp_path: Path, image_folder: str) -> None:
    grid = ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=64, resize=72, output="grid")
    model = saved(tmp_path / "model", image=grid, image_context=PLACED)
    rows = image_rows(image_folder)
    made = EmbedImages(model, batch_size=5)("part-00000", rows)
    paths = [row["uri"] for row in rows.to_pylist() if row["id"] != "broken"]
    ids = [Path(path).stem for path in paths]
    expected = DualEncoder.from_pretrained(model).encode_images(paths)
    assert expected.shape == (12, 3, 8)
    np.testing.assert_allclose(matrix(made.table).reshape(12, 3, 8), expected, atol=1e-6)
    assert made.table.column("id").to_pylist() == [f"{name}#v{view:02d}" for name in ids for view in range(3)]
    assert made.table.column("group").to_pylist() == [name for name in ids for _ in range(3)]
    assert made.table.column("uri").to_pylist() == [path for path in paths for _ in range(3)]
    assert made.counts == {"images": 12, "quarantined": 1}
    none = EmbedImages(model)("part-00001", rows.slice(5, 1))
    assert (len(none.table), none.table.schema) == (0, made.table.schema)


@pytest.mark.parametrize("has_context", [False, True])
def test_regions_of_a_precomputed_folder_are_embedded(tmp_path: Path, has_context: bool) -> None:
    model = saved(tmp_path / "model", image=REGIONS, image_context=PLACED, context_head=has_context)
    source, features, codes = precomp(tmp_path / "precomp")
    expected = DualEncoder.from_pretrained(model).encode_features(features, positions=codes)
    assert expected.shape == (4, 3, 24 if has_context else 8)
    for size in (1, 3, 10):
        table = all_shards(EmbedRegions(model, source, batch_size=2), source, size)
        np.testing.assert_allclose(matrix(table).reshape(expected.shape), expected, atol=1e-5)
        assert table.column("group").to_pylist() == [f"{7 + row}" for row in range(4) for _ in range(3)]
    with pytest.raises(InputError, match="has no dev_ims.npy"):
        (tmp_path / "precomp" / "dev_caps.txt").write_text("a\n")
        (tmp_path / "precomp" / "dev_ids.txt").write_text("1\n")
        open_regions(RegionSource(path=source.path, split="dev"))


def test_a_model_that_needs_positions_says_where_they_are_missing(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", image=REGIONS, image_context=PLACED)
    source, _, _ = precomp(tmp_path / "precomp", has_boxes=False)
    with pytest.raises(InputError, match="does not say where its regions lie"):
        all_shards(EmbedRegions(model, source), source, 4)


def test_regions_of_a_bank_are_embedded_whatever_their_number(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", image=REGIONS, image_pooling="mean")
    sizes, rng = [3, 1, 5], np.random.default_rng(1)
    sets = [rng.standard_normal((size, 12)).astype(np.float32) for size in sizes]
    groups = [name for name, size in zip("xyz", sizes) for _ in range(size)]
    names = [f"{group}#r{row:02d}" for row, group in enumerate(groups)]
    write_vectors(str(tmp_path / "regions.arrow"), make_vectors(names, np.concatenate(sets), groups=groups))
    source = RegionSource(path=str(tmp_path / "regions.arrow"))
    table = all_shards(EmbedRegions(model, source, batch_size=2, dtype="float16"), source, 2)
    encoder = DualEncoder.from_pretrained(model)
    expected = np.concatenate([encoder.encode_features(one[None]) for one in sets])
    assert table.column("id").to_pylist() == ["x", "y", "z"]
    assert table.column("group").null_count == 3
    np.testing.assert_allclose(matrix(table).astype(np.float32), expected, atol=1e-3)
    assert matrix(table).dtype == np.float16


def test_one_view_is_a_plain_row() -> None:
    table = embedding_rows(["a", "b"], np.ones((2, 1, 3), np.float32))
    assert table.column("id").to_pylist() == ["a", "b"]
    assert table.column("group").null_count == 2
