from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from xmatch.data.region_files import ImageRegions, RegionFile, regions_to_vectors, write_line_offsets
from xmatch.data.vectors import check_vectors, matrix
from xmatch.errors import InputError

Numbers = npt.NDArray[np.float32]


def images(count: int = 3, regions: int = 4, width: int = 5) -> list[ImageRegions]:
    rng = np.random.default_rng(3)
    found = []
    for row in range(count):
        corners = np.sort(rng.uniform(0, 90, size=(regions, 2, 2)).astype(np.float32), axis=1)
        features = rng.normal(size=(regions, width)).astype(np.float32)
        found.append(ImageRegions(f"COCO_é{row}", corners.reshape(regions, 4), features, 100, 90))
    return found


def text(array: Numbers) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def lxmert_line(r: ImageRegions) -> str:
    middle = ["eA==", "eA==", "eA==", "eA=="]
    ends = [str(len(r.boxes)), text(r.boxes), text(r.features)]
    return "\t".join([r.image_id, str(r.height), str(r.width), *middle, *ends])


def caffe_line(r: ImageRegions) -> str:
    ends = [str(len(r.boxes)), text(r.boxes), text(r.features)]
    return "\t".join([r.image_id, str(r.width), str(r.height), *ends])


def payload(r: ImageRegions, with_features: bool = True) -> str:
    objects = [{"rect": box.tolist(), "class": "dog"} for box in r.boxes]
    if with_features:
        objects = [o | {"feature": text(row)} for o, row in zip(objects, r.features, strict=True)]
    return json.dumps({"image_w": r.width, "image_h": r.height, "num_boxes": len(r.boxes), "objects": objects})


def vinvl_line(r: ImageRegions) -> str:
    return f"{r.image_id}\t{payload(r)}"


LINES: dict[str, Callable[[ImageRegions], str]] = {"lxmert": lxmert_line, "caffe": caffe_line, "vinvl": vinvl_line}


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def same(a: ImageRegions, b: ImageRegions) -> bool:
    arrays = np.array_equal(a.boxes, b.boxes) and np.array_equal(a.features, b.features)
    return arrays and (a.image_id, a.width, a.height) == (b.image_id, b.width, b.height)


@pytest.mark.parametrize("form", sorted(LINES))
def test_what_is_written_is_read_in_order_and_at_random(tmp_path: Path, form: str) -> None:
    written = images()
    source = RegionFile(write(tmp_path / "x.tsv", [LINES[form](r) for r in written]))
    assert [same(a, b) for a, b in zip(source, written, strict=True)] == [True] * 3
    assert source.bad_rows == 0
    with pytest.raises(InputError, match="write_line_offsets"):
        source.at(0)
    write_line_offsets(source.path)
    assert all(same(source.at(row), written[row]) for row in (2, 0, 1))
    assert len(list(source)) == 3
    with pytest.raises(InputError, match="no line 3"):
        source.at(3)


def test_vinvl_features_and_predictions_are_joined(tmp_path: Path) -> None:
    written = images()
    features = write(tmp_path / "features.tsv", [f"{r.image_id}\t{len(r.boxes)}\t{text(r.features)}" for r in written])
    lines = [f"{r.image_id}\t{payload(r, with_features=False)}" for r in written]
    predictions = write(tmp_path / "predictions.tsv", lines)
    assert all(same(a, b) for a, b in zip(RegionFile(features, predictions), written, strict=True))
    source = RegionFile(features, write(tmp_path / "p.tsv", [lines[1], lines[0], lines[2]]))
    assert len(list(source)) == 1 and source.bad_rows == 2
    with pytest.raises(InputError, match="more lines"):
        list(RegionFile(features, write(tmp_path / "p.tsv", [*lines, lines[0]])))
    short = RegionFile(features, write(tmp_path / "p.tsv", lines[:2]))
    assert len(list(short)) == 2 and short.bad_rows == 1
    with pytest.raises(InputError, match="3 columns.*predictions"):
        RegionFile(features)
    alone = RegionFile(predictions)
    assert not list(alone) and alone.bad_rows == 3 and "predictions" in alone.first_bad[0]


def test_a_bare_list_of_objects_has_no_size(tmp_path: Path) -> None:
    objects = json.dumps(json.loads(payload(images()[0]))["objects"])
    (found,) = RegionFile(write(tmp_path / "x.tsv", [f"k\t{objects}"]))
    assert (found.width, found.height) == (0, 0)


def bad_lines() -> dict[str, tuple[str, str]]:
    r = images(1)[0]
    huge, turned, infinite = r.boxes.copy(), r.boxes.copy(), r.boxes.copy()
    huge[1, 2], infinite[0, 0] = 500, np.nan
    turned[2] = turned[2][[2, 3, 0, 1]]
    return {
        "outside": (caffe_line(r._replace(boxes=huge)), "box 1 is"),
        "turned": (caffe_line(r._replace(boxes=turned)), "box 2 is"),
        "nan": (caffe_line(r._replace(boxes=infinite)), "not finite"),
        "truncated": (caffe_line(r)[:-3], "not base64"),
        "truncated at a group of four": (caffe_line(r)[:-4], "not 4 rows of float32"),
        "no base64": (caffe_line(r)[:-8] + "!!!!!!!!", "not base64"),
        "columns": (caffe_line(r).rsplit("\t", 1)[0], "expected 6 columns, got 5"),
        "count": (caffe_line(r).replace("\t4\t", "\t-4\t"), "boxes, got '-4'"),
        "too many": (caffe_line(r).replace("\t4\t", "\t99999999\t"), "boxes, got '99999999'"),
        "size": (caffe_line(r).replace("\t100\t", "\t0\t"), "image size"),
        "no size": (caffe_line(r).replace("\t100\t", "\tx\t"), "image size"),
        "width": (caffe_line(images(1, width=7)[0]), "features of 7 numbers"),
        "no id": (caffe_line(r._replace(image_id="")), "id is empty"),
        "blank": ("", "expected 6 columns, got 1"),
    }


@pytest.mark.parametrize("case", sorted(bad_lines()))
def test_a_bad_line_is_left_out_and_counted(tmp_path: Path, case: str) -> None:
    line, message = bad_lines()[case]
    good = [caffe_line(r) for r in images(2)]
    source = RegionFile(write(tmp_path / "x.tsv", [good[0], line, good[1]]))
    assert len(list(source)) == 2
    assert source.bad_rows == 1
    assert "x.tsv', line 2" in source.first_bad[0] and message in source.first_bad[0]
    assert len(list(source)) == 2 and source.bad_rows == 1  # a second pass counts anew


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"objects": [{}]}', '{"objects": [], "image_w": 5, "image_h": 5}', "[" * 5000]
)
def test_bad_json_is_left_out_and_counted(tmp_path: Path, content: str) -> None:
    source = RegionFile(write(tmp_path / "x.tsv", [vinvl_line(images(1)[0]), f"k\t{content}"]))
    assert len(list(source)) == 1 and source.bad_rows == 1


def test_an_index_that_counts_characters_is_refused(tmp_path: Path) -> None:
    lines = [caffe_line(r) for r in images()]
    path = write(tmp_path / "x.tsv", lines)
    starts = np.cumsum([0] + [len(line) + 1 for line in lines[:-1]])  # é is one character but two bytes
    (tmp_path / "x.lineidx").write_text("".join(f"{start}\n" for start in starts))
    for read in (lambda: list(RegionFile(path)), lambda: RegionFile(path).at(1)):
        with pytest.raises(InputError, match=r"x\.lineidx', line 2.*instead of bytes"):
            read()
    write_line_offsets(path)
    write(tmp_path / "x.tsv", lines[:2])
    with pytest.raises(InputError, match="line 3"):
        list(RegionFile(path))
    (tmp_path / "x.lineidx").write_text("0\nx\n")
    with pytest.raises(InputError, match=r"line 2: expected a byte offset"):
        list(RegionFile(path))


def test_files_of_no_form_are_named(tmp_path: Path) -> None:
    for content in ("", "a\tb\tc\td\n", "\x00\xff\n"):
        (tmp_path / "x.tsv").write_text(content)
        with pytest.raises(InputError, match=r"x\.tsv', line 1.*10 \(lxmert\)"):
            RegionFile(str(tmp_path / "x.tsv"))
    with pytest.raises(InputError, match="does not exist"):
        RegionFile(str(tmp_path / "no.tsv"))


def test_regions_become_one_table_of_vectors() -> None:
    written = images()
    table = regions_to_vectors(written)
    check_vectors(table, "regions")
    assert table.column("id").to_pylist()[3:5] == ["COCO_é0#r03", "COCO_é1#r00"]
    assert table.column("group").to_pylist() == [r.image_id for r in written for _ in range(4)]
    assert np.array_equal(matrix(table), np.concatenate([r.features for r in written]))
    assert np.array_equal(matrix(table, "box"), np.concatenate([r.boxes for r in written]))
    with pytest.raises(InputError, match="no regions"):
        regions_to_vectors([])
    with pytest.raises(InputError, match="'COCO_é0' has features of 7"):
        regions_to_vectors([written[0], *images(1, width=7)])
