"""Regions in the originals' TSV files: written, indexed, read."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_models import golden
from small_regions import same, some_regions

from alignment.mvptr.regions.geometry import geometry, has_geometry, with_geometry, without_geometry
from alignment.mvptr.regions.region_tsv import (
    TsvRegions,
    encoded,
    mvptr_line,
    read_all,
    write_maria,
    write_mvptr,
    write_vinvl,
)
from xmatch.data.region_files import RegionFile
from xmatch.data.region_rows import ImageRegions, boxes_of_geometry
from xmatch.errors import InputError

GOLDEN = golden("agree_mvptr/mvptr_tsv")


def golden_image(row: dict) -> ImageRegions:
    """By the formula of the golden file; its hashes are of numbers made in double precision and then rounded."""
    count, k = row["n"], row["k"]
    places = (np.arange(count)[:, None] * 2054 + np.arange(2054)) * (k + 3) % 101
    features = (places / 50 - 1).astype(np.float32)
    none = np.zeros((0, 4), np.float32)
    return ImageRegions(str(500 + k), none, features, 0, 0, tuple(f"tag{i}" for i in range(count)))


def test_a_file_is_that_of_the_original_to_the_byte(tmp_path: Path) -> None:
    images = [golden_image(row) for row in GOLDEN["rows"]]
    for row, image in zip(GOLDEN["rows"], images, strict=True):
        text = encoded(image.features, "<f4")
        assert len(text) == row["base64_length"]
        assert hashlib.sha256(text.encode()).hexdigest() == row["base64_sha256"]
        assert float(image.features.sum()) == pytest.approx(row["row_sum"], abs=1e-3)
    data = "".join(f"{mvptr_line(image)}\n" for image in images).encode()
    assert len(data) == GOLDEN["tsv_bytes"] and hashlib.sha256(data).hexdigest() == GOLDEN["tsv_sha256"]
    (tmp_path / "predictions.tsv").write_bytes(data)
    (tmp_path / "predictions.lineidx").write_text("".join(f"{at}\n" for at in GOLDEN["lineidx"]))
    (tmp_path / "imageid2idx.json").write_text(json.dumps(GOLDEN["imageid2idx"]))
    found = TsvRegions(str(tmp_path / "predictions.tsv")).take("501")
    assert list(found.features.shape) == GOLDEN["decoded_row1_shape"]
    assert found.features[0, :5].tolist() == GOLDEN["decoded_row1_first5"]
    assert encoded(np.array(GOLDEN["small_array"]), "<f4") == GOLDEN["small_base64"]


def test_the_index_counts_bytes_and_is_the_originals_for_ascii(tmp_path: Path) -> None:
    images = [with_geometry(image) for image in some_regions()]
    write_mvptr(str(tmp_path), images)
    data = (tmp_path / "predictions.tsv").read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10)][:-1]
    assert [int(line) for line in (tmp_path / "predictions.lineidx").read_text().split()] == starts
    assert json.loads((tmp_path / "imageid2idx.json").read_text()) == {i.image_id: r for r, i in enumerate(images)}


def test_mvptrs_own_file_is_read_as_it_was_written_with_boxes_as_fractions(tmp_path: Path) -> None:
    images = [with_geometry(image) for image in some_regions()]
    assert write_mvptr(str(tmp_path), some_regions()) == 3
    source = TsvRegions(str(tmp_path / "predictions.tsv"))
    for image in (images[2], images[0]):
        found = source.take(image.image_id)
        assert same(found, image, but=("boxes", "width", "height", "scores", "labels"))
        np.testing.assert_allclose(found.boxes * [100, 90, 100, 90], image.boxes, atol=1e-4)
        assert (found.width, found.height) == (1, 1) and has_geometry(found)
    (tmp_path / "imageid2idx.json").unlink()
    assert TsvRegions(source.place).rows == source.rows
    assert images[0].image_id in source and "none" not in source
    write_mvptr(str(tmp_path / "again"), read_all(source.place))
    assert (tmp_path / "again/predictions.tsv").read_bytes() == (tmp_path / "predictions.tsv").read_bytes()


def test_vinvls_pair_is_read_as_it_was_written(tmp_path: Path) -> None:
    images = [with_geometry(image) for image in some_regions()]
    assert write_vinvl(str(tmp_path), lambda: iter(images)) == 3
    places = [str(tmp_path / name) for name in ("features.tsv", "predictions.tsv")]
    assert all(same(a, b, but=("labels",)) for a, b in zip(read_all(*places), images, strict=True))
    for name, columns in (("features", 3), ("predictions", 2)):
        offsets = [int(line) for line in (tmp_path / f"{name}.lineidx").read_text().split()]
        data = (tmp_path / f"{name}.tsv").read_bytes()
        assert [data[at:].split(b"\t")[0].decode() for at in offsets] == [image.image_id for image in images]
        assert all(len(line.split(b"\t")) == columns for line in data.splitlines())


def test_marias_file_is_read_as_it_was_written_and_has_its_columns(tmp_path: Path) -> None:
    images = some_regions(regions=36)
    path = str(tmp_path / "toy_train_d2obj36_batch_noAttr.tsv")
    assert write_maria(path, (with_geometry(image) for image in images)) == 3
    assert all(same(a, b) for a, b in zip(read_all(path), images, strict=True))
    source = RegionFile(path)
    assert same(source.at(1), images[1])
    key, literal = Path(path).read_text().splitlines()[0].split("\t")
    content = ast.literal_eval(literal)
    assert key == images[0].image_id and list(content) == [
        "objects_class", "objects_id", "objects_conf", "boxes", "features", "img_h", "img_w"]  # fmt: skip
    assert len(content["objects_class"]) == 36 and (content["img_h"], content["img_w"]) == (90, 100)
    sizes = {"objects_id": 36 * 8, "objects_conf": 36 * 4, "boxes": 36 * 16, "features": 36 * 5 * 4}
    assert {name: len(base64.b64decode(content[name])) for name in sizes} == sizes
    with pytest.raises(InputError, match="has 4 regions, Maria's file 36"):
        write_maria(path, some_regions())


def broken(case: str) -> tuple[str, str]:
    line = mvptr_line(with_geometry(some_regions(1)[0]))
    key, payload = line.split("\t")
    content = json.loads(payload)
    other = some_regions(1, width=7)[0]
    return {
        "truncated": (line[:-40], "expected JSON"),
        "cut base64": (_with(key, content, feature=content["feature"][:-4]), "not 4 rows of float32"),
        "half base64": (_with(key, content, feature=content["feature"][:-3]), "not base64"),
        "no base64": (_with(key, content, feature=7), "and their 'feature'"),
        "columns": (line + "\tmore", "expected 2 columns, got 3"),
        "one column": (key, "expected 2 columns, got 1"),
        "more tags": (_with(key, content, predictions=[*content["predictions"], "x"]), "not 5 rows"),
        "no tags": (_with(key, content, predictions=[]), "got 0 predictions"),
        "odd tags": (_with(key, content, predictions=[1]), "list of classes"),
        "width": (mvptr_line(with_geometry(other)).replace(other.image_id, "b"), "features of 13 numbers"),
        "program": (f"{key}\t{{'objects_class': __import__('os').getcwd()}}", "Python dict"),
    }[case]


def _with(key: str, content: dict, **changes: object) -> str:
    return f"{key}\t{json.dumps({**content, **changes})}"


@pytest.mark.parametrize(
    "case",
    ["truncated", "cut base64", "half base64", "no base64", "columns", "one column", "more tags", "no tags",
     "odd tags", "width", "program"],
)  # fmt: skip
def test_a_broken_line_names_file_and_line(tmp_path: Path, case: str) -> None:
    line, message = broken(case)
    good = [mvptr_line(with_geometry(image)) for image in some_regions(3)[1:]]
    (tmp_path / "predictions.tsv").write_text("".join(f"{one}\n" for one in (good[0], line, good[1])))
    with pytest.raises(InputError, match=message) as refused:
        list(read_all(str(tmp_path / "predictions.tsv")))
    assert "predictions.tsv', line 2" in str(refused.value)


def test_images_that_repeat_or_lack_something_are_refused(tmp_path: Path) -> None:
    image = some_regions(1)[0]
    with pytest.raises(InputError, match="row 1: image id 'imagé0' repeats"):
        write_mvptr(str(tmp_path), [image, image])
    assert not (tmp_path / "predictions.tsv").exists()
    with pytest.raises(InputError, match="4 regions and 0 tags"):
        write_mvptr(str(tmp_path), [image._replace(tags=())])
    with pytest.raises(InputError, match="size are not known"):
        write_mvptr(str(tmp_path), [image._replace(width=0)])


def test_an_index_of_other_images_is_refused(tmp_path: Path) -> None:
    write_mvptr(str(tmp_path), some_regions())
    (tmp_path / "imageid2idx.json").write_text('{"imagé0": 1, "imagé1": 7}')
    source = TsvRegions(str(tmp_path / "predictions.tsv"))
    with pytest.raises(InputError, match="line 2: image 'imagé1', but imageid2idx.json has 'imagé0' there"):
        source.take("imagé0")
    with pytest.raises(InputError, match="no line 7"):
        source.take("imagé1")
    with pytest.raises(InputError, match="has no image 'x'"):
        source.take("x")
    (tmp_path / "imageid2idx.json").write_text("[]")
    with pytest.raises(InputError, match="no map from image ids"):
        TsvRegions(source.place)


def test_geometry_is_six_fractions_that_come_and_go() -> None:
    boxes = np.array([[10, 20, 60, 80]], np.float32)
    np.testing.assert_allclose(geometry(boxes, 100, 80), [[0.1, 0.25, 0.6, 1.0, 0.5, 0.75]], atol=1e-6)
    image = some_regions(1)[0]
    both = with_geometry(image)
    assert both.features.shape == (4, 11) and has_geometry(both) and not has_geometry(image)
    assert same(with_geometry(both), both) and same(without_geometry(both), image)
    assert same(without_geometry(image), image)
    assert boxes_of_geometry(image.features).shape == (0, 4)
