"""Every file of AGREE through the conversion job, into our files and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from small_reranking import make_world

from alignment.entities.entity_tables import boxes_of_images, read_boxes
from alignment.original_files.image_arrays import save_png, write_arrays
from alignment.original_files.kinds import AGREE_FILES, AgreeFile
from alignment.original_files.vg_archive import IMAGES, MASKED, NAMES
from jobs import convert

CAPTION = {
    "image": "flickr30k-images/7.jpg",
    "caption": "A dog on grass",
    "image_id": 0,
    "segs": ["a dog", "a cat"],
    "preds": [{"a dog": 0.5}],
}


def run(what: str, file: str, source: object, output: object, *more: object) -> int:
    words = ["--what", what, "--agree.file", file, "--input", source, "--output", output, *more]
    return convert.main([str(word) for word in words])


def there_and_back(file: str, source: Path, ours: str, written: str, *more: object) -> tuple[bytes, bytes]:
    """What was given, and what our files of it become again."""
    folder = source.parent
    assert run("import_agree", file, source, folder / "ours", *more) == 0
    assert run("export_agree", file, folder / "ours" / ours if ours else folder / "ours", folder / "back", *more) == 0
    return source.read_bytes(), (folder / "back" / written).read_bytes()


def lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_every_file_is_known() -> None:
    assert set(AGREE_FILES) == set(get_args(AgreeFile))


def test_training_captions(tmp_path: Path, capsys) -> None:
    before, after = there_and_back("train", lines(tmp_path / "a.jsonl", CAPTION), "", "train.jsonl")
    assert json.loads(after) == json.loads(before) | {"segs": ["a dog"]}
    assert "1, listed in" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    [told] = json.loads((tmp_path / "ours" / "left_out.json").read_text())
    assert "line 1: entity 'a cat' is not in caption" in told


def test_validation_captions(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text(json.dumps([{"image": "7.jpg", "caption": ["a", "b"]}]))
    before, after = there_and_back("val", source, "", "flickr30k_val.json")
    assert json.loads(before) == json.loads(after)


@pytest.mark.parametrize(
    ("file", "ours", "written", "entries"),
    [
        ("truth", "captions.json", "test_texts.jsonl", [{"query_id": 3, "query_text": "a dog", "item_ids": [9]}]),
        ("objects", "objects.parquet", "imgs_objs.jsonl", [{"image_id": "9", "image_objects": ["dog"]}]),
        ("image_features", "", "img_feat.jsonl", [{"image_id": "9", "feature": [0.5, -0.25]}]),
        ("text_features", "", "txt_feat.jsonl", [{"query_id": 3, "feature": [0.5, -0.25]}]),
        ("predictions", "text_predictions.parquet", "text_predictions.jsonl", [{"query_id": 3, "item_ids": ["9"]}]),
        ("predictions", "image_predictions.parquet", "image_predictions.jsonl", [{"image_id": "9", "item_ids": [3]}]),
    ],
)
def test_files_of_lines(tmp_path: Path, file: str, ours: str, written: str, entries: list) -> None:
    more = ["--agree.side", "images"] if ours.startswith("image") else []
    before, after = there_and_back(file, lines(tmp_path / "a.jsonl", *entries), ours, written, *more)
    assert before == after


def test_test_entities_need_the_ground_truth(tmp_path: Path, capsys) -> None:
    truth = lines(tmp_path / "t.jsonl", {"query_id": 3, "query_text": "A dog", "item_ids": [9]})
    source = lines(tmp_path / "a.jsonl", {"query_id": 3, "query_text": "A dog", "items": ["a dog"]})
    assert run("import_agree", "segs", source, tmp_path / "o") == 2
    assert "import of AGREE's segs needs --agree.truth" in capsys.readouterr().err
    before, after = there_and_back("segs", source, "entities.parquet", "test_segs.jsonl", "--agree.truth", truth)
    assert before == after


@pytest.mark.parametrize(("side", "written"), [("prompt", "prompt_feat.jsonl"), ("mask", "mask_feat.jsonl")])
def test_entity_features(tmp_path: Path, side: str, written: str) -> None:
    source = lines(tmp_path / "a.jsonl", {"query_id": 3, "feature": [[0.5, 1.0], [-0.25, 2.0]]})
    truth = lines(tmp_path / "t.jsonl", {"query_id": 3, "query_text": "A dog", "item_ids": [9]})
    assert run("import_agree", "truth", truth, tmp_path) == 0
    for one in ("prompt", "mask"):
        assert run("import_agree", f"{one}_features", source, tmp_path / one) == 0
    given = ["--agree.captions", tmp_path / "captions.json", "--agree.slots", 2]
    given += ["--agree.prompts", tmp_path / "prompt", "--agree.masks", tmp_path / "mask"]
    assert run("export_agree", f"{side}_features", "unused", tmp_path, *given) == 0
    assert (tmp_path / written).read_bytes() == source.read_bytes()


def test_empty_slots_go_by_the_entities_table(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    entries = [{"query_id": row, "feature": [[1.0, float(row)], [2.0, 2.0], [0.5, 0.5]]} for row in (1, 2)]
    source = lines(tmp_path / "a.jsonl", *entries)
    more = ["--agree.entities", world / "entities.parquet"]
    assert run("import_agree", "prompt_features", source, tmp_path / "p", *more) == 0
    assert run("import_agree", "mask_features", source, tmp_path / "m", *more) == 0
    sentences = [{"raw": "x", "sentid": 1}, {"raw": "y", "sentid": 2}]
    captions = {"images": [{"filename": "a.jpg", "split": "test", "sentences": sentences}]}
    (tmp_path / "c.json").write_text(json.dumps(captions))
    given = ["--agree.captions", tmp_path / "c.json", "--agree.slots", 3, "--agree.prompts", tmp_path / "p" / "shards"]
    given += ["--agree.masks", tmp_path / "m" / "shards", "--agree.bare_text", tmp_path / "p" / "bare_text.arrow"]
    assert run("export_agree", "prompt_features", "unused", tmp_path, *given) == 0
    back = [json.loads(line)["feature"] for line in (tmp_path / "prompt_feat.jsonl").read_text().splitlines()]
    assert back == [[[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]], [[1.0, 2.0], [2.0, 2.0], [2.0, 2.0]]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two whole images as PNG, named 5 and 12."""
    folder = tmp_path_factory.mktemp("photos")
    for name in (5, 12):
        pixels = np.random.default_rng(name).integers(0, 256, (224, 224, 3)).astype(np.uint8)
        save_png(str(folder / f"{name}.png"), pixels)
    return folder


def test_images(tmp_path: Path, photos: Path) -> None:
    assert run("export_agree", "images", photos, tmp_path) == 0
    assert np.load(tmp_path / "images.224.npz").files == ["5", "12"]
    assert run("import_agree", "images", tmp_path / "images.224.npz", tmp_path) == 0
    for name in ("5.png", "12.png"):
        assert (tmp_path / "images" / name).read_bytes() == (photos / name).read_bytes()
    assert run("export_agree", "images", tmp_path / "images", tmp_path / "again") == 0
    assert (tmp_path / "again/images.224.npz").read_bytes() == (tmp_path / "images.224.npz").read_bytes()


def test_grounded_masks_become_boxes_and_masks_again(tmp_path: Path, photos: Path, capsys) -> None:
    assert run("export_agree", "images", photos, tmp_path) == 0
    arrays = dict(np.load(tmp_path / "images.224.npz"))
    masked = arrays["5"].copy()
    masked[:, 10:20, 30:50] = 0
    source = tmp_path / "masks.npz"
    write_arrays(str(source), [("5_a dog", masked), ("99_gone", masked)])
    whole = ["--agree.images", tmp_path / "images.224.npz"]
    assert run("import_agree", "grounding", source, tmp_path, *whole) == 0
    assert "left out" in capsys.readouterr().out
    [told] = json.loads((tmp_path / "left_out.json").read_text())
    assert "array '99_gone': its image '99' is not in" in told
    assert run("export_agree", "grounding", tmp_path / "boxes.parquet", tmp_path, "--agree.images", photos) == 0
    back = np.load(tmp_path / "flickr30k_visual_grounding.224.npz")
    assert back.files == ["5_a dog"] and np.array_equal(back["5_a dog"], masked)


def test_keys_of_arrays_come_from_the_training_captions(tmp_path: Path, photos: Path) -> None:
    image = CAPTION | {"image": "flickr30k-images/900.jpg", "image_id": 12}
    assert run("import_agree", "train", lines(tmp_path / "a.jsonl", image), tmp_path) == 0
    assert run("export_agree", "images", photos, tmp_path) == 0
    masked = dict(np.load(tmp_path / "images.224.npz"))["12"].copy()
    masked[:, :7] = 0
    write_arrays(str(tmp_path / "masks.npz"), [("900_a dog", masked)])
    given = ["--agree.images", tmp_path / "images.224.npz", "--agree.captions", tmp_path / "captions.json"]
    assert run("import_agree", "grounding", tmp_path / "masks.npz", tmp_path / "o", *given) == 0
    [box] = boxes_of_images(read_boxes(str(tmp_path / "o" / "boxes.parquet")))["900"]
    assert (box.phrase, box.x1, box.x2, box.y2) == ("a dog", 0.0, 1.0, pytest.approx(7 / 224))


def test_visual_genome(tmp_path: Path, photos: Path) -> None:
    source = tmp_path / "VG"
    source.mkdir()
    images = {path.stem: path for path in sorted(photos.iterdir())}
    assert run("export_agree", "images", photos, tmp_path) == 0
    arrays = dict(np.load(tmp_path / "images.224.npz"))
    masked = arrays["12"].copy()
    masked[:, 100:, :50] = 0
    write_arrays(str(source / IMAGES), arrays.items())
    write_arrays(str(source / MASKED), [("dog_12", masked)])
    lines(source / NAMES, {"vocab": "dog", "objects": [{"image_id": 12, "object": [[1, 2]]}]})
    assert run("import_agree", "vg", source, tmp_path / "ours") == 0
    assert {path.stem for path in (tmp_path / "ours/images").iterdir()} == set(images)
    assert run("export_agree", "vg", tmp_path / "ours", tmp_path / "back") == 0
    for name in (IMAGES, MASKED, NAMES):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_scores_in_success_and_in_failure(tmp_path: Path, capsys) -> None:
    truth = [{"query_id": one, "item_ids": [one]} for one in (1, 2)]
    right = lines(tmp_path / "t.jsonl", *truth)
    lists = lines(tmp_path / "a.jsonl", *({"query_id": one, "item_ids": ["1", "2"]} for one in (1, 2)))
    assert run("import_agree", "predictions", lists, tmp_path) == 0
    given = ["--agree.truth", right]
    assert run("export_agree", "score", tmp_path / "text_predictions.parquet", tmp_path, *given) == 0
    found = json.loads((tmp_path / "score.json").read_text())
    assert found["success"] and found["scoreJson"]["r1"] == 50.0
    assert run("import_agree", "score", tmp_path / "score.json", tmp_path / "s") == 0
    assert json.loads((tmp_path / "s/score.json").read_text())["r1"] == 50.0
    lines(right, *truth, {"query_id": 3, "item_ids": [3]})
    assert run("export_agree", "score", tmp_path / "text_predictions.parquet", tmp_path, *given) == 2
    assert "1 queries ('3') of 3 have no predictions" in capsys.readouterr().err
    assert json.loads((tmp_path / "score.json").read_text()) == {
        "success": False,
        "score": 0,
        "scoreJson": {},
        "errorDetail": 3,
        "errorMsg": 3,
    }
    assert run("import_agree", "score", tmp_path / "score.json", tmp_path / "s") == 2


@pytest.mark.parametrize("file", sorted(AGREE_FILES))
def test_what_is_not_there_is_told(tmp_path: Path, capsys, file: str) -> None:
    more = ["--agree.truth", "/no/such", "--agree.images", "/no/such"]
    assert run("import_agree", file, "/no/such/file", tmp_path / "o", *more) == 2
    errors = capsys.readouterr().err
    assert "/no/such" in errors and "Traceback" not in errors


def test_an_input_is_needed(tmp_path: Path, capsys) -> None:
    assert convert.main(["--what", "import_agree", "--output", str(tmp_path)]) == 2
    assert "import_agree needs --input" in capsys.readouterr().err
