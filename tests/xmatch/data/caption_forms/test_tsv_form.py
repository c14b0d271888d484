from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from xmatch.data.captions import read_captions
from xmatch.errors import InputError


def tsv(tmp_path: Path, text: str) -> str:
    path = tmp_path / "training.tsv"
    path.write_text(text)
    return str(path)


def test_lines_are_caption_and_image_name(tmp_path: Path, image_folder: str) -> None:
    found = read_captions(tsv(tmp_path, "one\ta.jpg\r\ntwo\tb.jpg\nthree\ta.jpg\n"), image_folder, "")
    assert found.image_ids == ["a.jpg", "b.jpg"]
    assert found.captions == ["one", "two", "three"]
    assert found.caption_image.tolist() == [0, 1, 0]
    assert len(set(found.caption_ids)) == 3
    assert found.bad_rows == 0


def test_names_follow_the_sets_path_rule_where_its_folders_are(tmp_path: Path, image_folder: str) -> None:
    folder = tmp_path / "cc" / "images" / "training"
    folder.mkdir(parents=True)
    shutil.copy(f"{image_folder}/a.jpg", folder / "training_00009486")
    found = read_captions(tsv(tmp_path, "one\ttraining_00009486\n"), str(tmp_path / "cc"), "")
    assert found.image_paths == [str(folder / "training_00009486")]


def test_bad_lines_and_missing_images_are_counted(tmp_path: Path, image_folder: str) -> None:
    found = read_captions(tsv(tmp_path, "one\ta.jpg\nno tab\n\tb.jpg\nx\tgone.jpg\n\ny\ta.jpg\tz\n"), image_folder, "")
    assert found.captions == ["one"]
    assert found.bad_rows == 4
    assert [text.split(":")[0].rsplit(", ", 1)[1] for text in found.first_bad] == [
        "line 2",
        "line 3",
        "line 4",
        "line 6",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ta.jpg\ntwo\t../../secret.jpg\n", "line 2.*would leave"),
        ("one\t/etc/passwd\n", "line 1.*would leave"),
        ("one\thttp://x/y.jpg\n", "line 1.*Download the images"),
        ("none at all\n", "no captions.*All 1 rows are bad.*line 1"),
        ("", "no captions"),
    ],
)
def test_hostile_and_useless_files_stop_by_name(tmp_path: Path, image_folder: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_captions(tsv(tmp_path, text), image_folder, "")
    assert "training.tsv" in str(error.value)
