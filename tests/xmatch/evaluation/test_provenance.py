from __future__ import annotations

from pathlib import Path

import pytest
from small_gallery import small_gallery, write_gallery

from xmatch.errors import InputError
from xmatch.evaluation.gallery import GalleryConfig
from xmatch.evaluation.provenance import (
    NO_RECORD,
    data_hashes,
    evaluation_versions,
    overlap_of_models,
    overlap_text,
    unknown_overlap,
)
from xmatch.models import checkpoints
from xmatch.training.leakage import SEEN_FILE, seen_record, write_seen

GALLERY = small_gallery()


def model_folder(folder: Path, seen: int | None) -> str:
    """A folder that passes for a model's; its training saw the first images of the split."""
    folder.mkdir()
    (folder / checkpoints.CONFIG).write_text("{}")
    if seen is not None:
        some = (
            small_gallery(seen)
            if seen
            else small_gallery()._replace(
                image_ids=[f"COCO_train2014_{900 + i:012}" for i in range(10)],
                captions=[f"other {i}" for i in range(50)],
            )
        )
        write_seen([seen_record(some, role="train")], str(folder / SEEN_FILE))
    return str(folder)


def test_an_overlap_is_refused_unless_allowed_and_then_stands_in_the_result(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", 3)
    with pytest.raises(InputError, match="has seen 3 of the 10 images.*--allow_overlap true"):
        overlap_of_models([model], GALLERY, allow=False)
    [entry] = overlap_of_models([model], GALLERY, allow=True)
    assert (entry["of"], entry["overlap"]["images_leaked"], entry["reason"]) == (model, 3, None)
    assert overlap_text([entry, entry]) == "3 of 10 images seen in training"


def test_every_member_of_an_ensemble_is_looked_up(tmp_path: Path) -> None:
    clean, leaky = model_folder(tmp_path / "a", 0), model_folder(tmp_path / "b", 2)
    assert overlap_of_models([clean], GALLERY, allow=False)[0]["overlap"]["images_leaked"] == 0
    with pytest.raises(InputError, match="has seen 2 of the 10"):
        overlap_of_models([clean, leaky], GALLERY, allow=False)


def test_what_is_not_known_is_null_with_a_reason(tmp_path: Path) -> None:
    [entry] = overlap_of_models([model_folder(tmp_path / "m", None)], GALLERY, allow=False)
    assert (entry["overlap"], entry["reason"]) == (None, NO_RECORD)
    assert overlap_text([entry]).startswith("unknown: no training_data.parquet")
    assert unknown_overlap([]) == []


def test_hashes_are_of_the_files_the_split_and_the_photos(tmp_path: Path) -> None:
    path = write_gallery(tmp_path, GALLERY)
    found = data_hashes(GalleryConfig(captions=path, split="test"), GALLERY, reads_photos=False)
    assert set(found) == {"gallery", "captions"}
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"a")
    shown = GALLERY._replace(image_paths=[str(photo)] * 10)
    first = data_hashes(GalleryConfig(captions=path, split="test"), shown, reads_photos=True)["photos"]
    photo.write_bytes(b"b")
    assert data_hashes(GalleryConfig(captions=path, split="test"), shown, reads_photos=True)["photos"] != first
    gone = shown._replace(image_paths=["gone.jpg"] * 10)
    assert data_hashes(GalleryConfig(captions=path, split="test"), gone, reads_photos=True)["photos"] is None
    folder = tmp_path / "precomp"
    folder.mkdir()
    for name in ("test_caps.txt", "test_ids.txt", "dev_caps.txt"):
        (folder / name).write_text("x")
    found = data_hashes(GalleryConfig(captions=str(folder), split="test"), GALLERY, reads_photos=False)
    assert set(found) == {"gallery", "test_caps.txt", "test_ids.txt"}


def test_versions_of_what_only_evaluation_uses() -> None:
    assert set(evaluation_versions()) == {"eccv-caption"}
