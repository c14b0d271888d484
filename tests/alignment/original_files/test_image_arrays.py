"""Arrays of images: PNG and back to the bit, boxes of masked copies, and archives that are broken or hostile."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alignment.entities.entity_tables import Box
from alignment.original_files.image_arrays import (
    Arrays,
    array_of,
    boxes_of_masks,
    difference_box,
    masked_array,
    masked_copies,
    pixels_of,
    save_png,
    write_arrays,
)
from alignment.original_files.vg_archive import IMAGES, MASKED, NAMES, open_vg
from xmatch.errors import InputError


def photo(seed: int) -> np.ndarray:
    """An image as AGREE's arrays hold it, (3, 224, 224) float32, made of 8-bit pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return array_of(sink.getvalue())


def test_arrays_become_png_and_come_back_to_the_bit(tmp_path: Path) -> None:
    array = photo(0)
    path = str(tmp_path / "a.npz")
    assert write_arrays(path, [("7", array), ("flickr_a b/c", array[:, :3])]) == 2
    found = Arrays(path, path)
    assert found.names == ["7", "flickr_a b/c"] and "7" in found and "8" not in found
    assert np.array_equal(np.load(path)["7"], array)
    pixels = pixels_of(found.read("7"), "array")
    save_png(str(tmp_path / "7.png"), pixels)
    assert np.array_equal(array_of(str(tmp_path / "7.png")), array)
    before = (tmp_path / "a.npz").read_bytes()
    write_arrays(path, [("7", array), ("flickr_a b/c", array[:, :3])])
    assert (tmp_path / "a.npz").read_bytes() == before


def test_arrays_of_8_bits_and_of_half_precision_are_read_too() -> None:
    array = photo(1)
    pixels = pixels_of(array, "x")
    assert np.array_equal(pixels_of(pixels.transpose(2, 0, 1), "x"), pixels)
    assert np.abs(pixels_of(array.astype(np.float16), "x").astype(int) - pixels).max() <= 1
    with pytest.raises(InputError, match="x does not hold pixels normalised by CLIP's"):
        pixels_of(array * 10, "x")


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_nothing_is_unpickled_and_broken_files_are_named(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", good=photo(0), bad=np.array([{}], object), flat=np.zeros((3, 4)))
    found = Arrays(path, path)
    with pytest.raises(InputError, match="array 'bad' cannot be read: Object arrays"):
        found.read("bad")
    with pytest.raises(InputError, match=r"array 'flat' is float64 of shape \(3, 4\)"):
        found.read("flat")
    (tmp_path / "cut.npz").write_bytes(Path(path).read_bytes()[:1000])
    with pytest.raises(InputError, match="is no whole npz"):
        Arrays(str(tmp_path / "cut.npz"), "cut")
    with pytest.raises(InputError, match="does not exist"):
        Arrays(str(tmp_path / "gone.npz"), "gone")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 33), st.integers(1, 33))
def test_a_painted_box_is_found_again(left: int, top: int, width: int, height: int) -> None:
    array = np.random.default_rng(0).random((3, 64, 63)).astype(np.float32) + 0.1
    box = Box("i", "p", "s", left / 63, top / 64, (left + width) / 63, (top + height) / 64, 1.0)
    found = difference_box(array, masked_array(array, box))
    assert found == pytest.approx(box[3:7])
    assert difference_box(array, array) is None


def test_boxes_of_an_archive(tmp_path: Path) -> None:
    images = {"12": photo(0), "13": photo(1)}
    box = Box("900", "a dog", "grounding", 0.25, 0.5, 0.75, 1.0, 1.0)
    masked = {
        "900_a dog": masked_array(images["12"], box),
        "13_same": images["13"],
        "99_cat": images["13"],
        "13_small": images["13"][:, :5],
        "13": images["13"],
    }
    arrays = Arrays(npz(tmp_path / "m.npz", **masked), "m"), Arrays(npz(tmp_path / "i.npz", **images), "i")
    found = boxes_of_masks(*arrays, {"900": "12"}, "grounding", phrase_first=False)
    assert found.boxes == [box]
    assert [one.split(": ", 1)[1] for one in found.left_out] == [
        "it does not differ from its image",
        "its image '99' is not in 'i'",
        "shape (3, 5, 224), its image has (3, 224, 224)",
        "the name holds no phrase and image",
    ]


def test_masked_copies_have_the_originals_names(tmp_path: Path) -> None:
    save_png(str(tmp_path / "5.png"), pixels_of(photo(0), "x"))
    places = {"5": str(tmp_path / "5.png")}
    boxes = [Box("5", "dog", "s", 0.0, 0.0, 0.5, 0.5, 1.0), Box("5", "dog", "s", 0.5, 0.5, 1.0, 1.0, 1.0)]
    [(name, array)] = masked_copies(boxes, places, phrase_first=True)
    assert name == "dog_5"
    assert not array[:, :112, :112].any() and not array[:, 112:, 112:].any() and array[:, :112, 112:].any()
    assert next(iter(masked_copies(boxes, places, phrase_first=False)))[0] == "5_dog"
    with pytest.raises(InputError, match="image '6' of the box of 'cat' is not there"):
        list(masked_copies([Box("6", "cat", "s", 0, 0, 1, 1, 1.0)], places, phrase_first=True))


def vg_folder(folder: Path) -> Path:
    folder.mkdir()
    image = photo(3)
    box = Box("5", "red ball", "visual_genome", 0.0, 0.25, 0.5, 0.75, 1.0)
    npz(folder / IMAGES, **{"5": image})
    npz(folder / MASKED, **{"red ball_5": masked_array(image, box)})
    entry = {"vocab": "red ball", "objects": [{"image_id": 5, "object": [{"x": 1}]}]}
    (folder / NAMES).write_text(json.dumps(entry) + "\n")
    return folder


def test_the_archive_is_read_packed_and_unpacked(tmp_path: Path) -> None:
    folder = vg_folder(tmp_path / "VG")
    with tarfile.open(tmp_path / "VG.tgz", "w:gz") as archive:
        archive.add(folder, "VG")
        evil = tarfile.TarInfo("../../escaped")
        archive.addfile(evil, io.BytesIO())
    for place in (folder, tmp_path / "VG.tgz"):
        with open_vg(str(place)) as found:
            boxes = boxes_of_masks(found.masked, found.images, {}, "visual_genome", phrase_first=True)
            assert boxes.boxes == [Box("5", "red ball", "visual_genome", 0.0, 0.25, 0.5, 0.75, 1.0)]
            assert found.regions.column("image_id").to_pylist() == ["5"]
    assert not (tmp_path.parent / "escaped").exists()
    (folder / NAMES).unlink()
    with tarfile.open(tmp_path / "less.tgz", "w:gz") as archive:
        archive.add(folder, "VG")
    for place in (folder, tmp_path / "less.tgz"):
        with pytest.raises(InputError, match=f"holds no '{NAMES}'"), open_vg(str(place)):
            pass
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "VG.tgz").read_bytes()[:5000])
    for name in ("cut.tgz", "gone.tgz"):
        with pytest.raises(InputError, match="no whole tar|does not exist"), open_vg(str(tmp_path / name)):
            pass


def test_an_array_that_is_cut_short_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(InputError, match="array 'x' cannot be read"):
        Arrays(str(tmp_path / "a.npz"), "a").read("x")
